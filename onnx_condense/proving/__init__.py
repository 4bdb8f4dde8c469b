"""What a result is held against before it goes out: its plan, the tolerance, the clock; and where it came from."""
