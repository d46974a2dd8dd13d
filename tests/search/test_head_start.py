"""Workers that are started before the driver asks for them."""

from paretune.search.head_start import HeadStart


class Counted:
    made = closed = 0

    def __init__(self):
        Counted.made += 1

    def close(self):
        Counted.closed += 1


def test_workers_are_started_once_and_ended_by_whoever_has_them(monkeypatch):
    monkeypatch.setattr(Counted, "made", 0)
    monkeypatch.setattr(Counted, "closed", 0)
    with HeadStart() as never:
        assert never is not None
    assert (Counted.made, Counted.closed) == (0, 0)
    with HeadStart() as begun:
        begun.begin(Counted)
        begun.begin(Counted)
    assert (Counted.made, Counted.closed) == (1, 1)  # nobody took them
    with HeadStart() as taken:
        taken.begin(Counted)
        taken.take(Counted)
        assert Counted.made == 2
        taken.take(Counted)  # those of before are the caller's; these are new
    assert (Counted.made, Counted.closed) == (3, 1)
