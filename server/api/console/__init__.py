"""Routes of the browser console."""
