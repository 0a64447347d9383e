"""What a run keeps in its folder, and never loses."""
