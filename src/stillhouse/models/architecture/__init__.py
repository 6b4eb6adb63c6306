"""What an architecture needs, found by trial or in its configuration: tiny copies, rotations, text parts."""
