"""Two-dimensional flow past a cylinder by the lattice Boltzmann method, over MPI ranks."""

from sim_clients.vortex_street.simulation import VortexStreet

__all__ = ["VortexStreet"]
