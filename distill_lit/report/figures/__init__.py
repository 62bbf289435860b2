"""Figures of a report, in matplotlib."""
