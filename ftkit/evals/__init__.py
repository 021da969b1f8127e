"""Measuring: metrics, intervals, paired tests and the gate."""
