# What a developer types; `just` alone lists it.

_default:
    @just --list

# Everything, in a fresh environment, as CI does
ci:
    .ci/run

# All tests, or those given
test *arguments:
    python -m pytest {{arguments}}

# Find mistakes and wrong formatting
lint:
    ruff check .
    ruff format --check .

# Mend what can be mended
format:
    ruff check --fix .
    ruff format .

# Check the types of the public modules
types:
    pyright

# Run every block of the README and the docs
docs:
    python -m pytest tests/test_readme.py tests/test_docs.py

# Build the site into site/ (needs the extra "docs"); `just site serve` shows it while you write
site command="build --strict":
    python -m mkdocs {{command}}

# Draw docs/images/demo.svg from what `remanence demo` prints
picture:
    python docs/make_demo_picture.py

# See it work
demo:
    remanence demo
