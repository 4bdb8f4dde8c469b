"""How wide every space becomes, within a tolerance, limits and grids; the candidates that come out."""
