"""One file per recipe: a frozen dataclass of every number that a training run needs."""
