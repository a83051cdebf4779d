"""Time-axial attention over packed frames: every pixel attends over the frames of its own segment."""
