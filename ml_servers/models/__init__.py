"""Models: reduced coordinates, affine dynamics and networks."""
