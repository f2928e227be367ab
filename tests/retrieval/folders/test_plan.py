"""The comparison of files with their records, without any file."""

from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.retrieval.folders.plan import compare
from cmfah_hf.retrieval.folders.scan import FoundFile
from cmfah_hf.retrieval.storage.folder_records import FileRecord

# A file is described by its content, a letter; its size is 1, so that sizes never tell contents apart.
TIME = 10**18


def found_of(contents, times):
    return {
        name: FoundFile(f"/root/{name}", 1, times.get(name, TIME), times.get(name, TIME), True) for name in contents
    }


def plan_of(before, after, times=None, unknown=(), retry=False, left_out=(), problems=()):
    """The plan from and to mappings of names to contents; `times` of those files that were touched."""
    found = found_of(after, times or {})
    recorded = {
        name: FileRecord(
            1, TIME, TIME, content.encode(), None, "broken" if name in problems else None, name in left_out
        )
        for name, content in before.items()
    }
    return compare(recorded, found, lambda file: after[file.path[6:]].encode(), unknown.__contains__, retry)


def applied(before, plan, after):
    """The contents behind the codes of an index that follows a plan."""
    codes = dict(before)
    taken = {name: codes[source] for name, source in plan.reuse.items()}
    for name in [*plan.gone, *plan.without_code]:
        codes.pop(name, None)
    return codes | taken | {name: after[name] for name in plan.encode}


NAMES, CONTENTS = st.sampled_from("abcdef"), st.sampled_from("UVWXYZ")
FOLDERS = st.dictionaries(NAMES, CONTENTS)


@given(before=FOLDERS, after=FOLDERS)
def test_a_plan_leads_to_what_is_there_and_encodes_no_content_twice(before, after):
    touched = {name: TIME + 1 for name in after if before.get(name) != after[name]}
    plan = plan_of(before, after, touched)
    assert applied(before, plan, after) == after
    assert {after[name] for name in plan.encode} == set(after.values()) - set(before.values())
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    assert {*plan.added, *(name for _, name in plan.renamed)} == new
    assert {*plan.removed, *(name for name, _ in plan.renamed)} >= gone
    assert len(plan.removed) + sum(name in gone for name, _ in plan.renamed) == len(gone)
    assert len({name for name, _ in plan.renamed}) == len(plan.renamed)
    assert set(plan.changed) == {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert plan.unchanged == len(before.keys() & after.keys()) - len(plan.changed)
    assert plan.is_empty == (before == after)


def test_a_move_keeps_the_name_where_contents_repeat():
    plan = plan_of({"x/one": "U", "x/two": "U"}, {"y/two": "U", "y/one": "U"})
    assert sorted(plan.renamed) == [("x/one", "y/one"), ("x/two", "y/two")]


def test_what_cannot_be_reached_is_neither_gone_nor_a_source_of_a_rename():
    plan = plan_of({"a": "U", "b": "V"}, {"c": "U"}, unknown=["a", "b"])
    assert (plan.gone, plan.renamed, plan.added, plan.kept) == ([], [], ["c"], 2)
    assert plan.reuse == {"c": "a"}


def test_an_unreadable_image_is_tried_again_only_by_other_libraries():
    assert plan_of({"a": "U"}, {"a": "U"}, problems="a").unreadable == ["/root/a: broken"]
    assert plan_of({"a": "U"}, {"a": "U"}, problems="a").encode == []
    assert plan_of({"a": "U"}, {"a": "U"}, problems="a", retry=True).encode == ["a"]
    assert plan_of({"a": "U"}, {"a": "V"}, {"a": TIME + 1}, problems="a").encode == ["a"]


def test_what_was_removed_by_hand_stays_out_under_another_name_but_copies_come_in():
    plan = plan_of({"a": "U"}, {"b": "U"}, left_out="a")
    assert (plan.encode, plan.reuse, plan.left_out, plan.records["b"].left_out) == ([], {}, 1, True)
    plan = plan_of({"a": "U"}, {"a": "U", "b": "U"}, left_out="a")
    assert (plan.encode, plan.left_out) == (["b"], 1)


def test_a_file_that_cannot_be_read_keeps_its_code():
    def fails(file):
        raise PermissionError(13, "Permission denied")

    record = FileRecord(1, TIME, TIME, b"U")
    plan = compare({"a": record}, found_of("a", {"a": TIME + 1}), fails)
    assert plan.is_empty
    assert plan.unreadable == ["/root/a: cannot be read (Permission denied)."]
