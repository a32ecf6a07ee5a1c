"""What happens while a planned model trains."""
