"""[rollout], [reward] and [value] of a configuration: what draws responses, what scores them, what predicts scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from msgspec import Meta

from preftune.errors import UserError
from preftune.table import Count, FromPython, Table, about

if TYPE_CHECKING:
    from preftune.rows.row import Prompt

    Score = float | None
    Function = Callable[[Prompt, Sequence[str], str | None], Sequence[Score]]

MEASURED = 64  # held-out prompts that are drawn to, where nobody says
ROWS = 256  # responses that are drawn at once, from where on a wider batch draws no faster
FUNCTION = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|.*\.py):[^\W\d]\w*", re.DOTALL)
URL = re.compile(r"https?://[^/\s]+(?:/\S*)?")

TASKS = "Prompts of a phase; if not given, as many as make 256 responses."
RESPONSES = "Responses drawn to each prompt."
PEERS_RESPONSES = (
    "num_generations num_generations_eval n_samples_per_prompt rollout_n rloo_k group_size num_return_sequences"
)
MAX_TOKENS = "Tokens after which a response is cut."
HELD_OUT = "Held-out prompts that are drawn to at an evaluation; 64 if not given, or all where there are fewer."
CEILING = (
    "Responses of the reference to held-out prompts, drawn once before training, from which the ceiling of the score "
    "follows; 2048 if not given, 0: none is told."
)
TEMPERATURE = "Divides the logits, of the draw and of the update alike."
EPOCHS = "Passes over the responses of a phase."
REDRAWS = (
    "How many times prompts are replaced by others whose responses all have one score, before anything is learned from "
    "a phase (DAPO's dynamic sampling); 0 if not given."
)
PEERS_REDRAWS = "filter_groups dynamic_filtering dynamic_sampling max_num_gen_batches"
LABELS = (
    "What scores become for objectives of pairs, ratings and rankings; soft if not given. soft: the probability that "
    "the better one is preferred; drawn: which is preferred, drawn from it; ranks: the better one; judge: what a "
    "pairwise judge says."
)
SERVER = (
    "Address of a vLLM server that draws for a run with an adapter, in place of its own process; it reads the run's "
    "folder."
)


class Rollout(Table, frozen=True):
    """[rollout] Responses are drawn from the policy, scored and learned from, phase by phase."""

    tasks: Annotated[
        Count | None, about(TASKS, also="rollout_batch_size num_prompts generation_batch_size ppo_buffer_size")
    ] = None
    responses: Annotated[int, about(RESPONSES, also=PEERS_RESPONSES, ge=1)] = 8
    max_tokens: Annotated[
        int, about(MAX_TOKENS, also="max_completion_length response_length max_new_tokens generate_max_len", ge=1)
    ] = 256
    epochs: Annotated[int, about(EPOCHS, also="num_iterations ppo_epochs num_ppo_epochs", ge=1)] = 1
    temperature: Annotated[float, about(TEMPERATURE, gt=0, le=100)] = 1.0
    redraws: Annotated[int, about(REDRAWS, also=PEERS_REDRAWS, ge=0)] = 0
    labels: Annotated[Literal["soft", "drawn", "ranks", "judge"] | None, about(LABELS)] = None
    held_out: Annotated[Count | None, about(HELD_OUT, also="max_eval_samples num_eval_prompts")] = None
    ceiling: Annotated[Annotated[int, Meta(ge=0)] | None, about(CEILING)] = None
    server: Annotated[str | None, about(SERVER, also="vllm_server_base_url vllm_server_host", identity=False)] = None

    def __post_init__(self) -> None:
        if self.server is not None and not URL.fullmatch(self.server):
            raise ValueError(f'server is "{self.server}", which is no address such as http://127.0.0.1:8000')
        for name in ("held_out", "ceiling"):
            if self.labels == "judge" and getattr(self, name) is not None:
                raise ValueError(f"a judge gives no score that could be measured, so {name} has no effect")

    @property
    def phase_tasks(self) -> int:
        """Prompts of a phase."""
        return self.tasks or max(1, ROWS // self.responses)


REWARD_MODEL = "Folder or hub name of a reward model; beside `judge`, the name under which its server has the model."
PEERS_MODEL = "reward_model_path reward_pretrain reward_model reward_model_adapters"
REWARD_FUNCTION = (
    "`rewards.py:name` or `module:name` of a function (prompt, responses, answer) -> a score each; it may leave out "
    "`answer`, and whatever it takes beyond these is a column of the row."
)
VERIFY = (
    "1 where a response agrees with the task's answer, else 0. exact: the same text; number: the same last number; "
    "regex: what `pattern` takes from the response is the answer."
)
PATTERN = (
    'For `verify = "regex"`: what stands in its group (?P<answer>...) is compared; without a group it has to match.'
)
JUDGE = (
    'For `labels = "judge"`: a function (prompt, first, second) -> probability that the first is better, named as in '
    "`function`, or the address of an OpenAI-compatible server."
)
WEIGHT = "Factor of this score in the sum of all; 0 for one that is measured and not learned from."
MISSING_END = "Subtracted from the score of a response that was cut before its end."
NEAR_END = (
    "Last tokens before rollout.max_tokens over which a response loses more and more of missing_end, though it ends "
    "(DAPO, arXiv 2503.14476); only one that is cut loses it if not given."
)
TIME_LIMIT = "Seconds that one call of a function, or of a judge's server, may take."
REWARD_ARGUMENTS, JUDGE_ARGUMENTS = ("prompt", "responses", "answer"), ("prompt", "first", "second")
OTHER_ARGUMENTS = ("prompts", "completions", "queries", "solution_str", "solution_strs")  # of TRL, OpenRLHF and verl
SOURCES = ("model", "function", "verify", "judge")


class Reward(Table, frozen=True):
    """[reward] What scores a response: one of `model`, `function`, `verify` and `judge`, or a list of such tables."""

    model: Annotated[str | None, about(REWARD_MODEL, also=PEERS_MODEL, location=True)] = None
    function: Annotated[
        str | None,
        about(REWARD_FUNCTION, also="reward_funcs reward_function remote_rm_url custom_reward_function", location=True),
    ] = None
    verify: Annotated[Literal["exact", "number", "regex"] | None, about(VERIFY)] = None
    pattern: Annotated[str | None, about(PATTERN)] = None
    judge: Annotated[str | None, about(JUDGE, also="judges", location=True)] = None
    weight: Annotated[float, about(WEIGHT, also="reward_weights", ge=-1e9, le=1e9)] = 1.0
    missing_end: Annotated[
        float, about(MISSING_END, also="missing_eos_penalty overlong_penalty_factor", ge=0, le=1e9)
    ] = 0.0
    missing_end_tokens: Annotated[Count | None, about(NEAR_END, also="overlong_buffer_len overlong_buffer")] = None
    time_limit: Annotated[
        Annotated[float, Meta(gt=0, le=1e6)] | None, about(f"{TIME_LIMIT} 60 if not given.", also="timeout")
    ] = None

    def __post_init__(self) -> None:
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if named == ["model", "judge"] and URL.fullmatch(self.judge or ""):
            named = ["judge"]
        if len(named) != 1:
            problem = f"has {' and '.join(named)}" if named else "names nothing that scores"
            raise ValueError(f"a reward {problem}; it needs one of {', '.join(SOURCES)}")
        if isinstance(self.function, str) and not FUNCTION.fullmatch(self.function):
            raise ValueError(f'function is "{self.function}", which is no rewards.py:name or module:name')
        if self.judge is not None and not (FUNCTION.fullmatch(self.judge) or URL.fullmatch(self.judge)):
            raise ValueError(f'judge is "{self.judge}", which is no address, judges.py:name or module:name')
        if (self.pattern is not None) != (self.verify == "regex"):
            raise ValueError('pattern and verify = "regex" need each other')
        if self.time_limit is not None and self.function is None and self.judge is None:
            raise ValueError("time_limit has no effect without function or judge")
        if self.missing_end_tokens is not None and not self.missing_end:
            raise ValueError("missing_end_tokens has no effect without missing_end")
        if self.judge is not None and (self.weight != 1 or self.missing_end):
            raise ValueError("a judge gives no score, so weight and missing_end have no effect")

    @property
    def name(self) -> str:
        """How the record names its score."""
        if callable(self.function):
            return getattr(self.function, "__qualname__", type(self.function).__name__)
        return self.judge or self.function or (self.verify and f"verify {self.verify}") or str(self.model)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def is_own_reward(value: object) -> bool:
    """Whether it is a function of the user's own, or a table or a list that holds one."""
    if isinstance(value, list | tuple):
        return any(map(is_own_reward, value))
    return _is_function(value.function if isinstance(value, Reward) else value)


def own_reward_given(value: object) -> object:
    """What a record says in place of it: the keys of its tables, and of each function its name and a digest of its
    source."""
    from preftune.rollout.functions import given_function

    if isinstance(value, list | tuple):
        if wrong := [each for each in value if not isinstance(each, Reward) and not _is_function(each)]:
            raise UserError(f"holds a {type(wrong[0]).__name__}.", location="reward",
                            hint="It is a list of functions and of Reward(...).")  # fmt: skip
        return [own_reward_given(each) for each in value]
    keys = {name: getattr(value, name) for name in value.__struct_fields__} if isinstance(value, Reward) else {}
    function = keys.get("function") if keys else value
    if not callable(function):
        return keys
    named = given_function(function)
    return keys | {"function": named.name, "source": named.digest}


OWN_REWARD = FromPython(
    "a callable (prompt, responses, answer) -> one score a response, or a list of those and of Reward(...)",
    is_own_reward,
    own_reward_given,
)
Rewards: TypeAlias = Reward | tuple[Reward, ...]  # what a file may hold


class Value(Table, frozen=True):
    """[value] The model that predicts a token's score to come, which `ppo` alone needs."""

    path: Annotated[
        str | None,
        about("Folder or hub name of its start; the reward model's, or else the policy's, if not given.",
              also="critic_pretrain value_model_path", location=True),
    ] = None  # fmt: skip
    lr: Annotated[float, about("Highest learning rate of it.", also="critic_learning_rate value_lr", gt=0, le=1)] = 1e-5
    warm_up: Annotated[
        int, about("Phases at the start in which it alone learns.", also="freezing_actor_steps critic_warmup", ge=0)
    ] = 0
    clip: Annotated[float, about("Largest norm of its gradient.", gt=0)] = 1.0
