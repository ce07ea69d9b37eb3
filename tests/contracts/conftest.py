"""The suites here are inherited, so their asserts have to be rewritten like a test module's."""

import pytest

pytest.register_assert_rewrite("storage_contract")
