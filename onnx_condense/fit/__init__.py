"""How readers take over what goes: moments, refits, turned trunks, and the methods to compare with."""
