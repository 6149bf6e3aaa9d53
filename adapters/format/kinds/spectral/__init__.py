"""Kinds that give a change by coefficients: Fourier, wavelets, circulant blocks."""
