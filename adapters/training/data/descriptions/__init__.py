"""Descriptions of data sets as other trainers keep them: which files, and what their fields mean."""
