"""What the user asked for, checked, and what it means for a network."""
