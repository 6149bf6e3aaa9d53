"""The browser console: its files, and how they are sent."""
