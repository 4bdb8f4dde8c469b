"""Which channels stay."""
