"""What several teachers can do together follows from what each of them can."""

from dataclasses import fields

from distill_lit.teachers import TeacherCapabilities


def test_every_field_says_what_it_is_of_several_teachers() -> None:
    assert [f.name for f in fields(TeacherCapabilities) if not callable(f.metadata.get("of_several"))] == []


def test_two_teachers_by_hand() -> None:
    """One with every capability, one with none: needs are those of any, abilities those of all."""
    flags = {f.name: True for f in fields(TeacherCapabilities) if isinstance(f.default, bool)}
    one = TeacherCapabilities("dense", max_target_tokens=9, hidden_layers="all", hidden_layers_key="key", **flags)
    other = TeacherCapabilities("top_k", max_target_tokens=5, **dict.fromkeys(flags, False))
    needs = ("needs_model", "needs_cache", "keeps_lm_head", "reads_held_out_rows", "copies_student", "follows_student")
    together = TeacherCapabilities.of_several([one, other])
    assert together == TeacherCapabilities("top_k", max_target_tokens=5, **{name: name in needs for name in flags})
    able = ("shares_tokenizer", "scores_student_text", "has_device", "reads_prompt")
    assert TeacherCapabilities.of_several([one, one]) == TeacherCapabilities(
        "dense", max_target_tokens=9, **{name: name in (*needs, *able) for name in flags}
    )
