"""Power, temperature, clocks and throttle counters: one small reader per source, sampled on one thread.

Readers take the folder where ``proc`` and ``sys`` hang, so that a tree of files stands in for a board. What cannot be
read is absent with a reason; nothing is replaced by zero or by another sensor.
"""
