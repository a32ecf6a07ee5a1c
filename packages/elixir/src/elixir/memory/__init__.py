"""Where chunks live and how they get there."""
