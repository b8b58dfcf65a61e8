"""Where a response begins and ends, in tokens. Names such as T7 or J15 are those of the corpus of bad inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokens.conftest import CHAT
from transformers import PreTrainedTokenizerBase

from preftune.errors import UserError
from preftune.rows.row import Demo, Message, Pair, Place, Ranking, Rating
from preftune.tokens.groups import TokenGroup
from preftune.tokens.tokenize import Tokenized, tokenize
from preftune.tokens.tokenizer import load_tokenizer, tokenizer_digest

Make = Callable[..., PreTrainedTokenizerBase]
Row = Callable[..., Pair]


def group_of(row: Pair, tokenizer: PreTrainedTokenizerBase) -> TokenGroup:
    (group,) = tokenize([row], tokenizer, max_tokens=2**31).groups
    return group


def reasons(done: Tokenized) -> list[str]:
    return [note.reason for note in done.notes]


def text(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids.tolist()))


def test_text_is_continued_and_ends_once(byte_level: Make, pair: Row) -> None:
    tokenizer = byte_level()
    group = group_of(pair(), tokenizer)
    assert text(tokenizer, group.prompt) == "the cat:"
    assert [text(tokenizer, ids) for ids in group.responses] == [" sat<|im_end|>", " ran<|im_end|>"]
    assert group.prompt.dtype == np.int32
    assert (group.kind, group.ranks, str(group.place)) == ("pair", (1, 2), "made.jsonl:1")


@pytest.mark.parametrize("written", ["<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nsat", "the cat sat"])
@pytest.mark.parametrize("after", ["", "<|im_end|>", "<|im_end|>\n"])
def test_text_is_what_a_model_reads_from_its_first_token_on(byte_level: Make, written: str, after: str) -> None:
    tokenizer = byte_level()
    row = Demo(prompt="", response=written + after, rendered=True, place=Place("made", 1))
    done = tokenize([row], tokenizer, max_tokens=99)
    (group,), ids = done.groups, tokenizer(written + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert [*group.prompt, *group.responses[0]] == ids
    assert (len(group.prompt), reasons(done)) == (1, ["end.written"] if after else [])


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_text_has_one_begin_token_which_is_not_scored(sentence: PreTrainedTokenizerBase, begin: str) -> None:
    row = Demo(prompt="", response=f"{begin}the cat</s>the cat", rendered=True, place=Place("made", 1))
    (group,) = tokenize([row], sentence, max_tokens=99).groups
    written = sentence(f"{begin}the cat</s>the cat</s>", add_special_tokens=not begin)["input_ids"]
    assert [[*group.prompt], [*group.responses[0]]] == [written[:1], written[1:]]
    assert written.count(sentence.eos_token_id) == 2


def test_a_noncharacter_is_no_text(byte_level: Make) -> None:
    row = Demo(prompt="", response="the cat\ufdd0x", rendered=True, place=Place("made", 1))
    assert [problem.reason for problem in tokenize([row], byte_level(), max_tokens=99).skipped] == ["text.noncharacter"]


def test_a_conversation_goes_through_the_template(byte_level: Make, chat: Row) -> None:
    tokenizer = byte_level()
    group = group_of(chat("hi", "yes?", "the cat"), tokenizer)
    assert text(tokenizer, group.prompt) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [text(tokenizer, ids) for ids in group.responses] == ["the mat<|im_end|>", "the dog<|im_end|>"]


def test_the_ids_are_those_of_the_whole_conversation(byte_level: Make, chat: Row) -> None:
    tokenizer = byte_level()
    group = group_of(chat("hi"), tokenizer)
    whole = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthe mat<|im_end|>"
    assert [*group.prompt, *group.responses[0]] == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_kinds_keep_what_was_judged(byte_level: Make) -> None:
    place = Place("made", 1)
    rows = [
        Rating(prompt="a", response="b", good=False, place=place, score=2.0),
        Ranking(
            prompt="a", responses=("b", "c", "d"), ranks=(2, 1, 2), place=place, scores=(0.0, 1.0, 0.0), weight=2.0
        ),
        Demo(prompt="a", response="b", place=place, id="x"),
        Pair(prompt="a", chosen="b", rejected="c", place=place, preferred=0.75, scores=(3.0, 1.0)),
    ]
    rating, ranking, demo, pair = tokenize(rows, byte_level(), max_tokens=10).groups
    assert (rating.kind, rating.good, rating.scores, rating.ranks) == ("rating", False, (2.0,), (1,))
    assert (ranking.ranks, ranking.scores, ranking.weight) == ((2, 1, 2), (0.0, 1.0, 0.0), 2.0)
    assert (demo.kind, demo.id, demo.scores) == ("demo", "x", None)
    assert (pair.preferred, pair.scores) == (0.75, (3.0, 1.0))


def test_sentencepiece_puts_its_space_before_the_prompt_alone(sentence: PreTrainedTokenizerBase, pair: Row) -> None:
    group = group_of(pair("the", " cat", "at"), sentence)
    whole = [sentence("the" + response)["input_ids"] for response in (" cat", "at")]
    assert [[*group.prompt, *ids] for ids in group.responses] == [[*ids, 2] for ids in whole]
    assert group.prompt[0] == 1
    assert group.prompt.tolist().count(1) == 1


def test_messages_without_a_template_become_a_transcript(sentence: PreTrainedTokenizerBase, chat: Row) -> None:
    row = chat("a", "b", "c")
    done = tokenize([row, msgspec.structs.replace(row, place=Place("made.jsonl", 2))], sentence, max_tokens=99)
    assert reasons(done) == ["chat.transcript"]
    assert "2 rows" in done.notes[0].message
    assert text(sentence, done.groups[0].prompt).endswith("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:")
    assert text(sentence, done.groups[0].responses[0]).endswith("the mat</s>")


class TestBoundaries:
    def test_t7_a_token_over_the_boundary_is_split_and_counted(
        self, joining: PreTrainedTokenizerBase, pair: Row
    ) -> None:
        done = tokenize([pair("ca", "b", "c"), pair("c", "ab", "b")], joining, max_tokens=9)
        first, second = done.groups
        assert first.prompt.tolist() == [4, 2]
        assert [ids.tolist() for ids in first.responses] == [[3, 1], [4, 1]]
        assert [ids.tolist() for ids in second.responses] == [[5, 1], [3, 1]]
        assert reasons(done) == ["boundary.merge"]

    def test_t7_split_responses_get_no_space_of_their_own(self, sentence: PreTrainedTokenizerBase, pair: Row) -> None:
        group = group_of(pair("the c", "at", "ab"), sentence)  # "▁cat" is one token
        assert [sentence.convert_ids_to_tokens(ids.tolist()) for ids in group.responses] == [
            ["at", "</s>"],
            ["a", "b", "</s>"],
        ]

    def test_t9_one_begin_token_although_it_is_written(self, sentence: PreTrainedTokenizerBase, pair: Row) -> None:
        done = tokenize([pair("<s>the", " cat", " at")], sentence, max_tokens=99)
        assert done.groups[0].prompt.tolist() == sentence("the")["input_ids"]
        assert "begin.written" in reasons(done)

    def test_t9_a_template_that_writes_the_begin_token(self, sentence: PreTrainedTokenizerBase, chat: Row) -> None:
        sentence = _copy(sentence, "{{ bos_token }}{% for m in messages %}{{ m.role[0] + ':' + m.content + ' ' }}"
                         "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                         "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}")  # fmt: skip
        group = group_of(chat("the"), sentence)
        assert group.prompt.tolist().count(1) == 1
        assert group.prompt[0] == 1
        assert [ids.tolist().count(2) for ids in group.responses] == [1, 1]

    def test_t12_end_token_that_pads_too(self, byte_level: Make, pair: Row) -> None:
        group = group_of(pair(), byte_level(pad_token="<|im_end|>"))
        assert [ids[-1] for ids in group.responses] == [4, 4]

    def test_t13_no_end_token(self, byte_level: Make, pair: Row) -> None:
        with pytest.raises(UserError, match="no end token"):
            group_of(pair(), byte_level(eos_token=None))

    def test_t14_t15_neither_begin_nor_pad(self, byte_level: Make, pair: Row) -> None:
        group = group_of(pair(), byte_level(pad_token=None))
        assert text(byte_level(), group.prompt) == "the cat:"

    def test_c7_nothing_before_the_response(self, byte_level: Make, pair: Row) -> None:
        done = tokenize([pair("")], byte_level(), max_tokens=9)
        assert done.groups[0].prompt.tolist() == [4]
        assert reasons(done) == ["prompt.stand_in"]


class TestLengths:
    def test_t1_too_long_rows_are_skipped(self, byte_level: Make, pair: Row) -> None:
        rows = [pair("q", "x" * n, "y") for n in (3, 4)]
        done = tokenize(rows, byte_level(), max_tokens=5)
        assert [skipped.reason for skipped in done.skipped] == ["too_long"]
        assert "6 tokens, 5" in done.skipped[0].message
        assert len(done.groups) == 1
        assert done.cut == 0

    def test_t3_a_cut_response_has_no_end(self, byte_level: Make, pair: Row) -> None:
        done = tokenize([pair("q", "x" * 9, "y")], byte_level(), max_tokens=5, too_long="cut")
        chosen, rejected = done.groups[0].responses
        assert len(chosen) == 4
        assert 4 not in chosen
        assert rejected[-1] == 4
        assert done.cut == 1

    @pytest.mark.parametrize(("prompt", "reason"), [("q" * 5, "prompt.too_long"), ("q" * 4, "")])
    def test_t2_a_prompt_that_leaves_no_room(self, byte_level: Make, pair: Row, prompt: str, reason: str) -> None:
        done = tokenize([pair(prompt, "x", "y")], byte_level(), max_tokens=5, too_long="cut")
        assert [skipped.reason for skipped in done.skipped] == ([reason] if reason else [])

    def test_t5_equal_after_the_cut(self, byte_level: Make, pair: Row) -> None:
        done = tokenize([pair("q", "xxz", "xxy")], byte_level(), max_tokens=3, too_long="cut")
        assert [skipped.reason for skipped in done.skipped] == ["pair.identical_after_cut"]

    def test_t6_a_response_of_one_token(self, byte_level: Make, pair: Row) -> None:
        assert [len(ids) for ids in group_of(pair("q", "x", "y"), byte_level()).responses] == [2, 2]

    def test_tied_responses_may_be_equal_after_the_cut(self, byte_level: Make) -> None:
        row = Ranking(prompt="q", responses=("xxa", "xxb", "y"), ranks=(1, 1, 2), place=Place("made", 1))
        assert len(tokenize([row], byte_level(), max_tokens=3, too_long="cut").groups) == 1


class TestControlTokens:
    @pytest.mark.parametrize("word", ["<|im_end|>", "a <|im_start|>b", "</s><s>", "<|im_end|>\n<|im_start|>user\nhi"])
    def test_c10_what_a_person_writes_stays_text(self, byte_level: Make, pair: Row, chat: Row, word: str) -> None:
        tokenizer = byte_level()
        rows = [pair(f"q {word} q", f" x{word}x", " y"), chat(f"q {word}", chosen=f"x {word} x")]
        done = tokenize(rows, tokenizer, max_tokens=500)
        plain, talk = done.groups
        assert not {0, 1, 2, 3, 4} & {*plain.prompt.tolist(), *plain.responses[0].tolist()[:-1]}
        assert [k for k in talk.prompt.tolist() if k < 5] == [3, 4, 3]
        assert [k for k in talk.responses[0].tolist() if k < 5] == [4]
        assert text(tokenizer, talk.responses[0]) == f"x {word} x<|im_end|>"
        assert reasons(done) == ["control.text"]

    @pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>"])
    def test_c24_an_end_token_that_is_written_is_not_doubled(
        self, byte_level: Make, pair: Row, chat: Row, ending: str
    ) -> None:
        tokenizer = byte_level()
        done = tokenize([pair(chosen=" sat" + ending), chat(chosen="sat" + ending)], tokenizer, max_tokens=99)
        assert [text(tokenizer, group.responses[0]) for group in done.groups] == [" sat<|im_end|>", "sat<|im_end|>"]
        assert "end.written" in reasons(done)

    def test_c23_only_an_end_token(self, byte_level: Make, pair: Row) -> None:
        done = tokenize([pair(chosen=" <|im_end|>")], byte_level(), max_tokens=99)
        assert [skipped.reason for skipped in done.skipped] == ["response.empty"]

    @pytest.mark.parametrize("template", [CHAT, None])
    def test_a_character_that_is_none(self, byte_level: Make, chat: Row, template: str | None) -> None:
        done = tokenize([chat("\ufdd0")], byte_level(template), max_tokens=99)
        assert [skipped.reason for skipped in done.skipped] == ["text.noncharacter"]

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
    )
    @given(
        parts=st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "</s>", "the", " ", "\n", "é", "x"]), min_size=1)
    )
    def test_only_the_template_gives_control_tokens(self, byte_level: Make, chat: Row, parts: list[str]) -> None:
        said = "q" + "".join(parts) + "q"
        group = group_of(chat(said, chosen="r" + said), byte_level())
        assert [k for k in group.prompt.tolist() if k < 5] == [3, 4, 3]
        assert [k for k in group.responses[0].tolist() if k < 5] == [4]
        assert text(byte_level(), group.responses[0]) == f"r{said}<|im_end|>"

    def test_c22_template_syntax_in_a_text_is_text(self, byte_level: Make, chat: Row) -> None:
        group = group_of(chat("{{ 7 * 7 }}", chosen="{% if %}"), byte_level())
        assert "{{ 7 * 7 }}" in text(byte_level(), group.prompt)
        assert text(byte_level(), group.responses[0]) == "{% if %}<|im_end|>"


class TestUnknown:
    def test_c19_mostly_unknown_is_an_error(self, joining: PreTrainedTokenizerBase, pair: Row) -> None:
        with pytest.raises(UserError, match="does not know"):
            tokenize([pair("xyz", "uvwa", "rstb")], joining, max_tokens=99)

    def test_c19_some_unknown_is_a_note(self, joining: PreTrainedTokenizerBase, pair: Row) -> None:
        done = tokenize([pair("c" * 90, "bz", "b")], joining, max_tokens=99)
        assert reasons(done) == ["token.unknown"]


THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<t>\n\n</t>\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nTHOUGHTS' }}{% endif %}"
)
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[' + m.content + ']' }}{% else %}"
    "{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
FAILING = {
    "J1 syntax": ("{% for m in messages %}{{ m.content }}", "fails at its line 1"),
    "J2 sandbox": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails: SecurityError"),
    "J7 date in a computed form": ("{{ strftime_now('%d' + '%b') }}" + INSTRUCT, "prints the date in a form"),
    "J8 random": ("{{ range(100000) | random }}" + INSTRUCT, "another text each time|differently"),
    "J10 drops the user": (
        "{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}{% endif %}",
        "drops the user",
    ),
    "J11 repeats the user": ("{{ messages[0].content }}" + INSTRUCT, "repeats the user"),
    "J13 no generation prompt": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}",
        "no generation prompt",
    ),
    "J18 endless": (INSTRUCT + "{#" + "x" * 2**20 + "#}", "longer than a million"),
    "drops the assistant": (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "drops the assistant",
    ),
    "J17 the system text moves": (
        INSTRUCT + "{% if messages[-1].role == 'user' %}{{ messages[0].content }}{% endif %}",
        "repeats the user",
    ),
    "J16 always raises": ("{{ raise_exception('only tools') }}", "only tools"),
}


class TestTemplates:
    @pytest.mark.parametrize("case", FAILING)
    def test_a_template_that_is_of_no_use(self, byte_level: Make, chat: Row, case: str) -> None:
        template, message = FAILING[case]
        with pytest.raises(UserError, match=message):
            tokenize([chat("q")], byte_level(template), max_tokens=99)

    def test_j16_failing_rows_are_listed_with_their_place(self, byte_level: Make, chat: Row, pair: Row) -> None:
        strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        bad = pair(
            (Message("system", "s"), Message("user", "q")), (Message("assistant", "a"),), (Message("assistant", "b"),)
        )
        inner = byte_level()
        inner.chat_template = strict + str(inner.chat_template)
        with pytest.raises(UserError) as caught:
            tokenize([chat("q"), bad, bad], inner, max_tokens=99)
        assert str(caught.value) == (
            "made.jsonl:1: the chat template fails: TemplateError: no system here. (and 1 more rows, up to 1) "
            "Mend it, or give another with data.template."
        )

    def test_a_template_is_named_once(self, byte_level: Make, chat: Row) -> None:
        with pytest.raises(UserError, match=r"^the chat template fails: TemplateError: only tools\. Mend it"):
            tokenize([chat("q")], byte_level(FAILING["J16 always raises"][0]), max_tokens=99)

    def test_j15_an_empty_block_of_thoughts_is_prompt(self, byte_level: Make, chat: Row) -> None:
        tokenizer = byte_level(THINK.replace("THOUGHTS", ""))
        group = group_of(chat("q"), tokenizer)
        assert text(tokenizer, group.prompt).endswith("<|im_start|>assistant\n<t>\n\n</t>\n")
        assert text(tokenizer, group.responses[0]) == "the mat<|im_end|>"

    def test_white_space_after_the_generation_prompt_is_response(self, byte_level: Make, chat: Row) -> None:
        tokenizer = byte_level(INSTRUCT, eos_token="</s>")
        done = tokenize([chat("q", chosen="the mat ")], tokenizer, max_tokens=99)
        assert text(tokenizer, done.groups[0].prompt) == "[q]"
        assert text(tokenizer, done.groups[0].responses[0]) == " the mat</s>"
        assert reasons(done) == ["template.edits"]

    def test_an_end_of_turn_without_control_token_gets_the_end_token(self, byte_level: Make, chat: Row) -> None:
        tokenizer = byte_level(INSTRUCT.replace("</s>", "\n###\n"))
        assert text(tokenizer, group_of(chat("q"), tokenizer).responses[0]) == " the mat\n###<|im_end|>"

    def test_j7_the_date_is_pinned_and_said(self, byte_level: Make, chat: Row) -> None:
        tokenizer = byte_level("{{ strftime_now('%d %b %Y') }}" + INSTRUCT)
        done = tokenize([chat("q")], tokenizer, max_tokens=99)
        assert text(tokenizer, done.groups[0].prompt) == "26 Jul 2024[q]"
        assert reasons(done) == ["template.date"]

    def test_j14_a_template_that_empties_a_response(self, byte_level: Make, chat: Row) -> None:
        cutting = INSTRUCT.replace("m.content | trim", "m.content | replace('sorry', '')")
        done = tokenize([chat("q", chosen="sorry")], byte_level(cutting), max_tokens=99)
        assert [skipped.reason for skipped in done.skipped] == ["response.empty"]


def _copy(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    import copy

    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    return made


class TestLoading:
    def test_saved_and_loaded(self, byte_level: Make, tmp_path: Path, written: Callable[[str], str]) -> None:
        byte_level().save_pretrained(tmp_path)
        loaded = load_tokenizer(str(tmp_path))
        assert tokenizer_digest(loaded) == tokenizer_digest(byte_level())
        other = load_tokenizer(str(tmp_path), template=written("{{ messages }}"))
        assert other.chat_template == "{{ messages }}"
        assert tokenizer_digest(other) != tokenizer_digest(loaded)

    def test_a_loaded_tokenizer_is_taken_as_it_is(self, byte_level: Make, written: Callable[[str], str]) -> None:
        tokenizer = byte_level()
        assert tokenizer_digest(load_tokenizer(tokenizer)) == tokenizer_digest(tokenizer)
        other = load_tokenizer(tokenizer, template=written("{{ messages }}"))
        assert (other.chat_template, tokenizer.chat_template) == ("{{ messages }}", byte_level().chat_template)
        with pytest.raises(UserError, match=r"model.tokenizer: this dict has no tokenizer.json. Convert it"):
            load_tokenizer({})  # type: ignore[arg-type]

    def test_the_digest_ignores_how_it_was_called(self, byte_level: Make, pair: Row) -> None:
        tokenizer = byte_level(pad_token="<unk>")
        before = tokenizer_digest(tokenizer)
        tokenizer("a b c", truncation=True, max_length=2, padding="max_length")
        assert tokenizer_digest(tokenizer) == before
        assert len(group_of(pair("q" * 9), tokenizer).prompt) == 9

    def test_tokenizer_json_alone(self, sentence: PreTrainedTokenizerBase, tmp_path: Path, pair: Row) -> None:
        sentence.save_pretrained(tmp_path)
        for file in tmp_path.iterdir():
            if file.name != "tokenizer.json":
                file.unlink()
        loaded = load_tokenizer(str(tmp_path))
        assert loaded.eos_token == "</s>"
        assert group_of(pair("the", " cat", " at"), loaded).responses[0][-1] == 2

    def test_z8_code_of_its_own(self, byte_level: Make, tmp_path: Path) -> None:
        byte_level().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="auto_map"):
            load_tokenizer(str(tmp_path))

    def test_z1_no_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"the folder .* has no tokenizer.* model\.tokenizer or"):
            load_tokenizer(str(tmp_path))
        with pytest.raises(UserError, match=r"^model\.path: no model is named\. Write model\.path=my-model"):
            load_tokenizer("")
        with pytest.raises(UserError, match="no folder"):
            load_tokenizer(str(tmp_path / "absent"))

    def test_z2_broken_file(self, byte_level: Make, tmp_path: Path) -> None:
        byte_level().save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
        with pytest.raises(UserError, match=r"cannot be read|no tokenizer"):
            load_tokenizer(str(tmp_path))

    def test_what_transformers_says_is_a_sentence_or_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        def fails(*_: object, **__: object) -> None:
            raise ValueError("Couldn't instantiate the backend tokenizer from one of:\n(1) a file\n(2) another")

        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
        (tmp_path / "vocab.json").write_text("{}")
        with pytest.raises(UserError, match=r"no readable tokenizer at .*: ValueError\. The tok"):
            load_tokenizer(str(tmp_path))

    def test_z6_another_class_that_encodes_otherwise(
        self, sentence: PreTrainedTokenizerBase, byte_level: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        byte_level().save_pretrained(tmp_path)
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: sentence)
        with pytest.raises(UserError, match="differently"):
            load_tokenizer(str(tmp_path))


@pytest.fixture(scope="module")
def loaded(shared: Callable[[str], Path]) -> dict[str, PreTrainedTokenizerBase]:
    names = ("stories260K", "tokenizers/minimind-6400", "tokenizers/gpt-neox-20b")
    return {name.split("/")[-1]: load_tokenizer(str(shared(f"models/{name}"))) for name in names}


class TestRealTokenizers:
    def test_j15_minimind(self, loaded: dict[str, PreTrainedTokenizerBase], chat: Row) -> None:
        tokenizer = loaded["minimind-6400"]
        group = group_of(chat("What?", chosen="That."), tokenizer)
        assert text(tokenizer, group.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert text(tokenizer, group.responses[0]) == "That.<|im_end|>"

    def test_t8_a_response_with_a_thought_of_its_own(
        self, loaded: dict[str, PreTrainedTokenizerBase], chat: Row
    ) -> None:
        tokenizer = loaded["minimind-6400"]
        group = group_of(chat("What?", chosen="<think>\nhm\n</think>\n\nThat."), tokenizer)
        assert text(tokenizer, group.prompt).endswith("<|im_start|>assistant\n<think>\n")
        assert text(tokenizer, group.responses[0]) == "hm\n</think>\n\nThat.<|im_end|>"
        assert text(tokenizer, group.responses[1]) == "\n</think>\n\nthe dog<|im_end|>"

    def test_stories(self, loaded: dict[str, PreTrainedTokenizerBase], pair: Row) -> None:
        tokenizer = loaded["stories260K"]
        group = group_of(pair("Once upon", " a time", " the hill"), tokenizer)
        assert [*group.prompt, *group.responses[0]] == [*tokenizer("Once upon a time")["input_ids"], 2]

    def test_a_lone_file_finds_its_end_token(self, loaded: dict[str, PreTrainedTokenizerBase], pair: Row) -> None:
        assert group_of(pair(), loaded["gpt-neox-20b"]).responses[0][-1] == 0

    def test_both_ways_to_keep_a_conversation_give_the_same_ids(
        self, loaded: dict[str, PreTrainedTokenizerBase], shared: Callable[[str], Path]
    ) -> None:
        from preftune.rows.read import read

        done: list[list[TokenGroup]] = []
        for name in ("hh_harmless.test.jsonl", "hh_harmless.test.plain.jsonl"):
            rows = read(str(shared(f"data/pairs/{name}"))).rows
            done.append(tokenize(rows, loaded["stories260K"], max_tokens=4096).groups)
        ids = [[(g.prompt.tolist(), [r.tolist() for r in g.responses]) for g in groups] for groups in done]
        assert len(ids[0]) == 359
        assert ids[0] == ids[1]

    @pytest.mark.slow
    def test_four_thousand_rows_in_seconds(
        self, loaded: dict[str, PreTrainedTokenizerBase], shared: Callable[[str], Path]
    ) -> None:
        import time

        from preftune.rows.read import read

        started = time.process_time()
        rows = read(str(shared("data/pairs/hh_helpful.train.jsonl"))).rows
        done = tokenize(rows, loaded["stories260K"], max_tokens=1024)
        assert len(done.groups) + len(done.skipped) == 4151
        assert time.process_time() - started < 10


RENDERED = ("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n", "sat<|im_end|>\n", "ran")


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_text_that_a_template_has_written_is_what_the_template_gives(byte_level: Make, begin: str) -> None:
    tokenizer = byte_level(bos_token=begin or None)
    prompt, *sides = RENDERED
    row = Pair(prompt=begin + prompt, chosen=sides[0], rejected=sides[1], place=Place("made", 1))
    (group,) = tokenize([row], tokenizer, max_tokens=99, control_tokens="tokens").groups
    asked, said = Message("user", "the cat"), [Message("assistant", text) for text in ("sat", "ran")]
    turns = Pair(prompt=(asked,), chosen=(said[0],), rejected=(said[1],), place=Place("made", 1))
    (expected,) = tokenize([turns], tokenizer, max_tokens=99).groups
    assert [id_ for id_ in group.prompt if id_ != tokenizer.bos_token_id] == expected.prompt.tolist()
    assert [ids.tolist() for ids in group.responses] == [ids.tolist() for ids in expected.responses]


def test_control_tokens_in_most_rows_are_refused_until_something_is_said_of_them(byte_level: Make) -> None:
    tokenizer, place = byte_level(), Place("made", 1)
    plain = Pair(prompt="the cat", chosen=" sat", rejected=" ran", place=place)
    rendered = Pair(prompt=RENDERED[0], chosen=RENDERED[1], rejected=RENDERED[2], place=place)
    tokenize([plain, rendered], tokenizer, max_tokens=99, control_tokens=None)
    with pytest.raises(UserError, match=r"data.control_tokens: 2 of 3 rows have control tokens in their text"):
        tokenize([plain, rendered, rendered], tokenizer, max_tokens=99, control_tokens=None)
    letters = tokenize([rendered], tokenizer, max_tokens=99, control_tokens="text").groups[0]
    tokens = tokenize([rendered], tokenizer, max_tokens=99, control_tokens="tokens").groups[0]
    assert len(letters.prompt) > len(tokens.prompt)


def test_tokens_of_ones_own_in_a_turn(byte_level: Make) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    row = Demo(prompt=(Message("user", "the cat"),), response=(Message("assistant", "<|think|>sat"),),
               place=Place("made", 1))  # fmt: skip
    ids = {said: tokenize([row], tokenizer, max_tokens=99, control_tokens=said).groups[0].responses[0].tolist()
           for said in ("text", "tokens")}  # fmt: skip
    think = tokenizer.convert_tokens_to_ids("<|think|>")
    assert (ids["tokens"].count(think), ids["text"].count(think)) == (1, 0)
