"""Plans as files: their form, and their use on other weights."""
