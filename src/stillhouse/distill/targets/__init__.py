"""Teacher distributions for every learned token: formats, storage, ensembles."""
