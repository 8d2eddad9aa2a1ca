"""The session: what is read when, what is kept, and that nobody's rating lands on another case. No widgets."""

from __future__ import annotations

from types import SimpleNamespace

import made_source
import pytest

from replica_detection.errors import ReplicaDetectionError
from ReplicaDetectionLib import CaseList
from ReplicaDetectionLib.Reading import Reading
from ReplicaDetectionLib.Session import Session

PAGE = 10
KEY = "0123456789abcdef0123456789abcdef"


class Task:
    """A piece of work that runs when the test says so."""

    def __init__(self, work, done, failed, progressed):
        self.work, self.done, self.failed, self.progressed = work, done, failed, progressed
        self.given_up = False

    def progress(self, *values):
        if self.progressed is not None and not self.given_up:
            self.progressed(*values)

    def cancelled(self):
        return self.given_up

    def cancel(self):
        self.given_up = True

    def finish(self):
        try:
            outcome = self.done, self.work(self)
        except ReplicaDetectionError as error:
            outcome = self.failed, str(error)
        if not self.given_up:
            outcome[0](outcome[1])


class Transport:
    """The real one's contract on one thread: nothing happens before `finish`."""

    def __init__(self):
        self.waiting: list[Task] = []

    def run(self, work, done, failed, progressed=None):
        self.waiting.append(Task(work, done, failed, progressed))
        return self.waiting[-1]

    def finish(self):
        while self.waiting:
            self.waiting.pop(0).finish()


class Logic:
    """Remembers what was shown; the real one is tested on MRML."""

    def __init__(self):
        self.pair, self.shown, self.revealed = None, [], 0

    def showPair(self, pair, blinding=None, *, keepPosition=False):
        self.pair = pair
        self.shown.append((pair.synthetic.id, pair.training.id, blinding is not None, keepPosition))

    def clear(self):
        self.pair = None

    forget = clear

    def reveal(self):
        self.revealed += 1


def MadeSource(*arguments, **options):
    """A source without surfaces: quick."""
    return made_source.MadeSource(*arguments, masks=False, **options)


@pytest.fixture
def desk(monkeypatch):
    """A session with its parts, and what it said; the list in small pages."""
    monkeypatch.setattr(CaseList, "PAGE", PAGE)
    monkeypatch.setattr(CaseList, "WHOLE_LIST_PAGE", 2 * PAGE)
    transport, logic = Transport(), Logic()
    session = Session(transport, logic)
    heard = []
    session.failed.connect(heard.append)
    session.told.connect(heard.append)
    return SimpleNamespace(session=session, transport=transport, logic=logic, heard=heard)


def open_source(desk, source, reader="anna"):
    desk.session.setReader(reader)
    desk.session.open(lambda task: source)
    desk.transport.finish()
    return source


def test_opening_reads_status_and_list(desk):
    open_source(desk, MadeSource(3))
    session = desk.session
    assert (session.reachable, session.status.studies) == (True, 3)
    assert [i.synthetic_id for i in session.list.items] == ["syn_0000", "syn_0001", "syn_0002"]
    assert session.activities.current is None


def test_a_source_that_does_not_answer_leaves_nothing_open(desk):
    source = MadeSource()
    source.problem = "no answer from http://127.0.0.1:8000"
    open_source(desk, source)
    assert desk.heard == [source.problem]
    assert desk.session.source is None
    assert desk.session.list is None


def test_a_case_is_shown_beside_its_nearest_match(desk):
    open_source(desk, MadeSource())
    desk.session.openNextUnrated()
    desk.transport.finish()
    assert desk.logic.shown == [("syn_0000", "train_000", False, False)]
    desk.session.openMatch("train_003")
    desk.transport.finish()
    assert desk.logic.shown[-1] == ("syn_0000", "train_003", False, True)


def test_what_was_read_ahead_is_not_read_again(desk):
    source = open_source(desk, MadeSource())
    desk.session.step(1)
    desk.transport.finish()
    assert source.read == [("syn_0000", ""), ("syn_0001", "")]
    desk.session.step(1)
    # On screen at once, before anything else runs.
    assert desk.logic.shown[-1][0] == "syn_0001"
    desk.transport.finish()
    assert source.read.count(("syn_0001", "")) == 1


def test_a_case_that_is_being_read_ahead_is_not_read_twice(desk):
    source = open_source(desk, MadeSource())
    desk.session.step(1)
    desk.transport.waiting.pop(0).finish()  # the first case is shown, reading ahead is under way
    assert desk.logic.shown
    desk.session.step(1)
    desk.transport.finish()
    assert desk.logic.shown[-1][0] == "syn_0001"
    assert source.read.count(("syn_0001", "")) == 1


def test_only_the_case_asked_for_last_appears(desk):
    open_source(desk, MadeSource())
    items = desk.session.list.items
    desk.session.openItem(items[3])
    desk.session.openItem(items[5])
    desk.transport.finish()
    assert [shown[0] for shown in desk.logic.shown] == ["syn_0005"]


def test_no_rating_lands_on_the_case_before(desk):
    """The reader presses n and 3 faster than the next case arrives."""
    source = open_source(desk, MadeSource())
    desk.session.openItem(desk.session.list.items[0])
    desk.transport.finish()
    desk.session.openItem(desk.session.list.items[7])
    assert desk.logic.pair is None, "the case before must not stand under another name"
    desk.session.rate(3)
    desk.session.save()
    assert not source.stored
    desk.transport.finish()
    assert desk.session.reading.draft.rating is None


def test_a_failed_case_stays_off_the_screen_and_can_be_tried_again(desk):
    source = open_source(desk, MadeSource())
    source.problem = "the image is gone"
    desk.session.openItem(desk.session.list.items[0])
    desk.transport.finish()
    assert desk.heard[0] == "the image is gone"
    assert desk.logic.pair is None
    source.problem = ""
    desk.session.openItem(desk.session.list.items[0])
    desk.transport.finish()
    assert desk.logic.pair.synthetic.id == "syn_0000"


def test_cancel_gives_up_and_says_nothing(desk):
    open_source(desk, MadeSource())
    desk.session.openItem(desk.session.list.items[0])
    assert desk.session.activities.current is not None
    desk.session.cancel()
    assert desk.session.activities.current is None
    desk.transport.finish()
    assert not desk.logic.shown
    assert not desk.heard


def test_progress_is_told_for_the_case_that_is_waited_for(desk):
    source = open_source(desk, MadeSource())
    texts = []
    desk.session.activities.changed.connect(lambda: texts.append(desk.session.activities.current))
    desk.session.openItem(desk.session.list.items[0])
    source.seconds = 0.02
    desk.transport.waiting[0].finish()
    assert any(a and (a.text, a.done, a.total) == ("reading the training image", 3, 8) for a in texts)
    texts.clear()
    desk.transport.finish()  # reading ahead is nobody's business
    assert not any(texts)


# --- the list


def test_steps_go_over_page_ends_and_stop_at_the_list_ends(desk):
    open_source(desk, MadeSource(PAGE + 5))
    desk.session.step(-1)
    assert "first case" in desk.heard[-1]
    desk.session.list.at(PAGE - 1, desk.session.openItem)
    desk.transport.finish()
    desk.session.step(1)
    desk.transport.finish()
    assert desk.session.item.synthetic_id == f"syn_{PAGE:04d}"
    assert desk.session.list.row == 0
    assert desk.session.list.query.offset == PAGE
    desk.session.step(-1)
    desk.transport.finish()
    assert desk.session.item.synthetic_id == f"syn_{PAGE - 1:04d}"
    desk.session.list.at(PAGE + 4, desk.session.openItem)
    desk.transport.finish()
    desk.session.step(1)
    assert "last case" in desk.heard[-1]


def test_stepping_through_what_is_not_rated_misses_nothing(desk):
    """Rated cases leave a filtered list as soon as it is read again; the steps in between must not jump over others."""
    open_source(desk, MadeSource(PAGE + 30))
    desk.session.list.setQuery(rated="no")
    desk.transport.finish()
    seen = []
    for _ in range(PAGE + 30):
        desk.session.step(1)
        desk.transport.finish()
        seen.append(desk.session.item.synthetic_id)
        desk.session.rate(1)
        desk.session.save()
        desk.transport.finish()
    assert seen == [f"syn_{i:04d}" for i in range(PAGE + 30)]


def test_a_case_that_a_filter_took_away_keeps_its_place(desk):
    open_source(desk, MadeSource(6))
    desk.session.list.setQuery(rated="no")
    desk.transport.finish()
    for _ in range(3):
        desk.session.step(1)
    desk.transport.finish()
    desk.session.rate(2)
    desk.session.save()
    desk.transport.finish()
    for _ in range(3):  # reading it again and again must not move it
        desk.session.list.refresh()
        desk.transport.finish()
    assert desk.session.list.row == -1
    desk.session.step(1)
    desk.transport.finish()
    assert desk.session.item.synthetic_id == "syn_0003"
    desk.session.list.setCurrent(None)


def test_a_sorting_or_filter_starts_at_the_first_page(desk):
    open_source(desk, MadeSource(3 * PAGE))
    desk.session.list.setQuery(offset=2 * PAGE)
    desk.transport.finish()
    assert desk.session.list.items[0].synthetic_id == f"syn_{2 * PAGE:04d}"
    desk.session.list.setQuery(sort="synthetic_id", descending=False)
    desk.transport.finish()
    assert desk.session.list.query.offset == 0
    desk.session.list.setQuery(offset=2 * PAGE)
    desk.transport.finish()
    desk.session.list.setQuery(search="syn_001")
    desk.transport.finish()
    assert (desk.session.list.page.total, desk.session.list.page.offset) == (10, 0)


# --- rating


def rate_first(desk, rating=3):
    desk.session.openNextUnrated()
    desk.transport.finish()
    desk.session.rate(rating)


def test_save_and_next_stores_and_opens_the_most_suspicious_unrated_case(desk):
    source = open_source(desk, MadeSource())
    rate_first(desk)
    desk.session.setComment("same hematoma")
    desk.session.save(True)
    desk.transport.finish()
    stored = source.stored[0]
    assert (stored.reader, stored.synthetic_id, stored.training_id) == ("anna", "syn_0000", "train_000")
    assert (stored.rating, stored.comment, stored.blinded, stored.index_version) == (3, "same hematoma", False, "v1")
    assert desk.session.item.synthetic_id == "syn_0001"
    assert desk.session.list.items[0].rating == 3


def test_a_rating_that_was_not_stored_stays_and_counts_once(desk):
    source = open_source(desk, MadeSource())
    rate_first(desk)
    source.problem = "the server does not answer"
    desk.session.save(True)
    first = desk.session.reading.rating("anna", False).rating_id
    desk.transport.finish()
    assert desk.heard[-1] == source.problem
    assert desk.session.item.synthetic_id == "syn_0000", "it must not go on before the rating is stored"
    assert desk.session.reading.draft.rating == 3
    source.problem = ""
    desk.session.save(True)
    desk.transport.finish()
    assert [r.rating_id for r in source.stored] == [first]


def test_a_second_try_says_the_very_same(desk):
    """A store refuses another content under an id that it knows: the time on the case runs on meanwhile."""
    source = open_source(desk, MadeSource())
    rate_first(desk)
    source.problem = "the server does not answer"
    desk.session.save()
    desk.transport.finish()
    reading = desk.session.reading
    first = reading.rating("anna", False)
    reading._seconds[first.synthetic_id, first.training_id] = 99.0
    assert reading.rating("anna", False) == first and reading.seconds > 90
    other = reading.rating("anna", True)
    assert other.blinded and other.rating_id != first.rating_id and other.seconds > 90


def test_a_changed_mind_after_a_lost_answer_is_stored(desk):
    """The server had stored the first rating although the reader saw an error: the second one is no repetition."""
    source = open_source(desk, MadeSource())
    rate_first(desk, 3)
    store = source.saveRating

    def lose_the_answer(rating):
        store(rating)
        raise ReplicaDetectionError("no answer in time")

    source.saveRating = lose_the_answer
    desk.session.save()
    desk.transport.finish()
    source.saveRating = store
    desk.session.rate(4)
    desk.session.save()
    desk.transport.finish()
    assert [r.rating for r in source.stored] == [3, 4]
    assert not desk.session.reading.dirty


def test_saving_twice_at_once_skips_no_case(desk):
    open_source(desk, MadeSource())
    rate_first(desk)
    desk.session.save(True)
    desk.session.save(True)
    desk.transport.finish()
    assert desk.session.item.synthetic_id == "syn_0001"


def test_a_choice_made_while_the_last_one_is_being_stored_is_not_lost(desk):
    source = open_source(desk, MadeSource())
    rate_first(desk, 3)
    desk.session.save()
    desk.session.rate(4)
    desk.session.save()  # the first one is under way: this one would be taken for its repetition
    desk.transport.finish()
    assert desk.session.reading.dirty
    assert desk.session.reading.draft.rating == 4
    for step in (1, -1):
        desk.session.step(step)
        desk.transport.finish()
    assert desk.session.reading.draft.rating == 4
    desk.session.save()
    desk.transport.finish()
    assert [r.rating for r in source.stored] == [3, 4]
    assert source.stored[0].rating_id != source.stored[1].rating_id


def test_undo_takes_back_choices_then_goes_back_to_the_case_saved_last(desk):
    source = open_source(desk, MadeSource())
    rate_first(desk, 2)
    desk.session.rate(4)
    desk.session.undo()
    assert desk.session.reading.draft.rating == 2
    desk.session.undo()
    assert desk.session.reading.draft.rating is None
    desk.session.rate(1)
    desk.session.save(True)
    desk.transport.finish()
    desk.session.undo()
    desk.transport.finish()
    assert desk.session.item.synthetic_id == "syn_0000"
    assert desk.session.reading.draft.rating == 1
    desk.session.rate(4)
    desk.session.save()
    desk.transport.finish()
    assert [r.rating for r in source.ratings("anna")] == [4], "a later rating replaces the earlier one"
    desk.session.undo()
    assert "nothing to undo" in desk.heard[-1]


def test_a_choice_waits_for_the_reader_to_come_back(desk):
    open_source(desk, MadeSource())
    rate_first(desk, 2)
    desk.session.setComment("not sure")
    desk.session.step(1)
    desk.transport.finish()
    assert desk.session.reading.draft.rating is None
    assert desk.session.reading.unsaved("syn_0000") == 2
    desk.session.step(-1)
    desk.transport.finish()
    assert (desk.session.reading.draft.rating, desk.session.reading.draft.comment) == (2, "not sure")


def test_an_earlier_day_s_ratings_are_there(desk):
    source = MadeSource()
    open_source(desk, source)
    rate_first(desk, 4)
    desk.session.setComment("clear")
    desk.session.save()
    desk.transport.finish()
    desk.session.close()
    open_source(desk, source)
    desk.session.openItem(desk.session.list.items[0])
    desk.transport.finish()
    assert (desk.session.reading.draft.rating, desk.session.reading.draft.comment) == (4, "clear")
    assert not desk.session.reading.dirty
    desk.session.openNextUnrated()
    desk.transport.finish()
    assert desk.session.item.synthetic_id == "syn_0001"


def test_another_reader_sees_nothing_of_the_first(desk):
    open_source(desk, MadeSource())
    rate_first(desk, 4)
    desk.session.save()
    desk.transport.finish()
    desk.session.setReader("ben")
    desk.transport.finish()
    assert desk.session.reading.draft.rating is None
    assert desk.session.list.items[0].rating is None


def test_without_a_name_nothing_is_rated(desk):
    source = open_source(desk, MadeSource(), reader="")
    rate_first(desk)
    desk.session.save()
    desk.transport.finish()
    assert not source.stored
    assert "name" in desk.heard[-1]


def test_the_key_s_name_comes_before_the_typed_one(desk):
    open_source(desk, MadeSource(reader="dr-lee"), reader="somebody else")
    assert desk.session.reader == "dr-lee"


def test_time_runs_only_while_the_pair_is_looked_at():
    now = [100.0]
    reading = Reading(clock=lambda: now[0])
    pair = MadeSource().pair("syn_0000")
    reading.begin(pair)
    now[0] += 10
    reading.pause()
    now[0] += 1000
    reading.resume()
    now[0] += 5
    assert reading.seconds == 15
    reading.begin(MadeSource().pair("syn_0001"))
    now[0] += 7
    assert reading.seconds == 7
    reading.begin(pair)
    assert reading.seconds == 15, "a second visit goes on"


# --- blinded


def blinded(desk, source):
    open_source(desk, source)
    desk.session.setBlinded(KEY)
    desk.transport.finish()
    return desk.session


def test_a_blinded_list_tells_nothing_by_its_order(desk):
    session = blinded(desk, MadeSource(9))
    order = [i.synthetic_id for i in session.list.items]
    assert sorted(order) == [f"syn_{i:04d}" for i in range(9)]
    assert order not in (sorted(order), sorted(order, reverse=True))
    session.setBlinded("f" * 32)
    desk.transport.finish()
    assert [i.synthetic_id for i in session.list.items] != order
    session.setBlinded(KEY)
    desk.transport.finish()
    assert [i.synthetic_id for i in session.list.items] == order, "another day the same order"


def test_a_blinded_reading_goes_through_every_case_once(desk):
    source = MadeSource(25)
    session = blinded(desk, source)
    for _ in range(25):
        session.openNextUnrated()
        desk.transport.finish()
        assert session.hidden
        session.rate(1)
        session.save(True)
        desk.transport.finish()
    assert sorted(r.synthetic_id for r in source.stored) == [f"syn_{i:04d}" for i in range(25)]
    assert all(r.blinded for r in source.stored)
    assert all(shown[2] for shown in desk.logic.shown)
    assert not desk.logic.revealed
    assert "Every case is rated" in desk.heard[-1]


def test_saving_without_going_on_reveals_and_ends_the_rating(desk):
    source = MadeSource()
    session = blinded(desk, source)
    session.openNextUnrated()
    desk.transport.finish()
    session.rate(3)
    session.save()
    desk.transport.finish()
    assert desk.logic.revealed == 1
    assert not session.hidden
    session.rate(1)
    session.save()
    desk.transport.finish()
    assert [r.rating for r in source.stored] == [3], "what was seen afterwards must not change it"
    session.save(True)
    desk.transport.finish()
    assert session.hidden


def test_ending_the_blinding_closes_the_case(desk):
    session = blinded(desk, MadeSource())
    session.openNextUnrated()
    desk.transport.finish()
    session.setBlinded("")
    desk.transport.finish()
    assert desk.logic.pair is None
    assert not session.blinded
    assert session.list.items[0].synthetic_id == "syn_0000"


# --- images of the scene, and the scene


def test_an_image_that_was_sent_is_shown_and_not_rated(desk):
    source = open_source(desk, MadeSource())
    done = []
    desk.session.compareImage("/tmp/image.nii.gz", "/tmp/mask.nii.gz", lambda: done.append(True))
    assert not done
    desk.transport.finish()
    assert done == [True]
    assert source.sent == ["/tmp/image.nii.gz", "/tmp/mask.nii.gz"]
    assert desk.logic.pair.synthetic.id == "image"
    desk.session.rate(3)
    desk.session.save()
    desk.transport.finish()
    assert not source.stored


def test_a_closed_scene_is_forgotten_and_the_list_stays(desk):
    open_source(desk, MadeSource())
    rate_first(desk, 3)
    desk.session.forgetScene()
    assert desk.logic.pair is None
    assert desk.session.item is None
    assert desk.session.list.items
    desk.session.step(1)
    desk.transport.finish()
    assert desk.session.item.synthetic_id == "syn_0000"
    assert desk.session.reading.draft.rating == 3


def test_a_server_that_goes_and_comes_is_noticed(desk):
    source = open_source(desk, MadeSource())
    source.problem = "no answer"
    desk.session.poll()
    desk.transport.finish()
    assert not desk.session.reachable
    assert not desk.heard, "asking by the clock is quiet"
    source.problem = ""
    desk.session.poll()
    desk.transport.finish()
    assert desk.session.reachable


def test_leaving_a_source_while_it_answers_changes_nothing(desk):
    open_source(desk, MadeSource())
    desk.session.poll()
    desk.session.step(1)
    desk.session.close()
    desk.transport.finish()
    assert desk.session.source is None
    assert not desk.session.reachable
    assert not desk.logic.shown
