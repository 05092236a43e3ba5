"""What tests share and stand in for the real thing: tiny models, small worlds, a Hub on loopback, processes."""

import pkgutil

import pytest

# So that an assertion in a double says what differed, as one in a test does.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
