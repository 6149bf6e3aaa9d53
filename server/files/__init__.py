"""Files that clients upload and download."""
