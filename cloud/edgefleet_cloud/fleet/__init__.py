"""Devices: enrolment, groups, what they are to run, what they report, and what they ask for."""
