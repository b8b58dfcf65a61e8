"""Numbers of tokens are columns of a group."""

from __future__ import annotations

import numpy as np
import pytest
from making import group


def numbers(*values: list[float]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(value, np.float32) for value in values)


def test_a_column_is_added_to_a_new_group() -> None:
    pair = group([1, 2], [3, 4], [5])
    assert pair.column("weight") is None
    weighted = pair.with_column("weight", numbers([1, 0.5], [2]))
    scored = weighted.with_column("reference", numbers([-1, -2], [-3]))
    assert pair.columns == {}
    assert list(weighted.columns) == ["weight"]
    assert [column.tolist() for column in scored.column("weight")] == [[1, 0.5], [2]]
    assert [column.tolist() for column in scored.column("reference")] == [[-1, -2], [-3]]
    assert scored.prompt is pair.prompt
    replaced = scored.with_column("weight", numbers([3, 3], [3]))
    assert [column.tolist() for column in replaced.column("weight")] == [[3, 3], [3]]
    assert list(replaced.columns) == ["weight", "reference"]


@pytest.mark.parametrize("values", [numbers([1], [2]), numbers([1, 2]), numbers([1, 2], [3], [4])])
def test_a_column_has_a_number_for_each_token(values: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit the responses"):
        group([1, 2], [3, 4], [5]).with_column("reference", values)
