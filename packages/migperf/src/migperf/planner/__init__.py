"""The planner: exact integer program, heuristics, re-validation by simulation."""
