"""Load: arrival processes, open loop, closed loop, search for the rate within an SLO."""
