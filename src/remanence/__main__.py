"""`python -m remanence`, as `torchrun -m remanence train …` starts it."""

from remanence.cli import main

if __name__ == "__main__":
    main()
