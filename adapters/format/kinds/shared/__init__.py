"""Kinds of low rank whose modules share projections or a bank of vectors."""
