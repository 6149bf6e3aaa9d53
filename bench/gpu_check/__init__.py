"""What only a GPU can show: does everything run on this one, how fast, and what happens when it fails."""
