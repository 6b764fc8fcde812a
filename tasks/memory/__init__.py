"""How much memory there is and is used, what follows from it for a worker and its children."""
