"""What runs inside a partition: training and inference in several frameworks."""
