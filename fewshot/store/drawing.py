"""A part of a table's rows, evenly chosen by their ids."""

import sqlalchemy as sa


def drawn(number: sa.ColumnElement[int], n: int, n_most: int) -> sa.ColumnElement[bool]:
    """Whether a number is among those drawn, about `n_most` of `n`: evenly, also where classes were enrolled in turn.

    Rows of one number are drawn together or not at all, and those drawn of fewer are among those drawn of more.

    Source:
        Knuth, "The Art of Computer Programming" 3, section 6.4: multiples of the golden ratio (2654435761 of 2**32),
        without their whole part, lie evenly between 0 and 1, in whatever steps they are taken.
    """
    # Of a larger number the product would have more than 64 bits.
    return number % 2**31 * 2654435761 % 2**32 < 2**32 * n_most // max(1, n)
