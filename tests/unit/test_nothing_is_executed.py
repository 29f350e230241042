"""Calls that could run what a file says: none in the sources, but those written down here with their reasons."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "speech2image"

#: Dotted ends of calls that run, unpickle or instantiate what they are given.
FORBIDDEN = (
    "pickle.load", "pickle.loads", "pickle.Unpickler", "_Unpickler", "torch.load", "torch.jit.load", "torch.hub.load", "np.load",
    "numpy.load", "np.fromstring", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "instantiate", "hydra.utils.call", "get_class", "get_method", "get_object", "eval", "exec",
    "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "extractall", "unpack_archive", "dictConfig",
    "load_state_dict_from_url", "from_pretrained", "from_string", "import_module", "OmegaConf.load", "OmegaConf.register_new_resolver",
)  # fmt: skip
#: (file, call): why it may stand there.
ALLOWED = {
    ("safe/records.py", "yaml.load"): "with SafeLoader only, checked below",
    ("safe/pickles.py", "_Unpickler"): "reduced to a table of our own functions",
    ("training/checkpoint.py", "torch.load"): "our own checkpoints, weights_only=True, checked below",
    ("config/build.py", "import_module"): "the name is one of config.validate.TARGETS",
    ("hub/released.py", "import_module"): "the name is a constant of a converter",
    ("app/cli.py", "import_module"): "the name is one of the verbs",
    ("report/page.py", "from_string"): "our own template",
}


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of a called expression; of others only the end."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(text: str) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def forbidden(text: str) -> list[tuple[str, ast.Call]]:
    """Return the calls of a source that need a reason: forbidden names, and shells."""
    found = []
    for name, node in calls(text):
        # Methods of our own objects have these names, too: `schedule.compile`, `network.eval()`.
        is_one = any(
            name == end
            or ("." in end and name.endswith(f".{end}"))
            or (name.endswith(f".{end}") and end not in _PLAIN)
            for end in FORBIDDEN
        )
        shell = any(word.arg == "shell" and not _is(word.value, False) for word in node.keywords)
        if is_one or shell:
            found.append((name, node))
    return found


_PLAIN = ("eval", "exec", "compile", "__import__")


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _reason(place: str, name: str) -> str | None:
    return next((why for (file, end), why in ALLOWED.items() if file == place and name.endswith(end)), None)


def test_nothing_that_runs_files_is_called_without_a_written_reason() -> None:
    without, used = [], set()
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        for name, node in forbidden(path.read_text(encoding="utf-8")):
            if _reason(place, name) is None:
                without.append(f"{place}:{node.lineno}: {name}")
            used |= {key for key in ALLOWED if key[0] == place and name.endswith(key[1])}
    assert not without
    not_calls = {("safe/pickles.py", "_Unpickler")}  # a base class
    assert used | not_calls == set(ALLOWED), "reasons that no call needs any more"


def test_loaders_that_are_allowed_are_called_in_their_safe_form() -> None:
    for place, end, word in (
        ("training/checkpoint.py", "torch.load", "weights_only"),
        ("safe/records.py", "yaml.load", "Loader"),
    ):
        for name, node in calls((SOURCE / place).read_text(encoding="utf-8")):
            if name.endswith(end):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                assert word in given and (word != "weights_only" or _is(given[word], True)), (
                    f"{place}: {name}"
                )
    assert "Unsafe" not in (SOURCE / "safe/records.py").read_text(encoding="utf-8")


def test_pickle_and_shells_are_imported_only_where_they_are_written_down() -> None:
    places: dict[str, set[str]] = {
        name: set() for name in ("pickle", "subprocess", "marshal", "shelve", "joblib", "dill", "cloudpickle")
    }
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in places:
                    places[name.split(".")[0]].add(path.relative_to(SOURCE).as_posix())
    allowed = {
        "safe/pickles.py",
        "speech/synthesis.py",
        "data/birds.py",
    }  # its machine, its error, and writing lists
    assert places["pickle"] <= allowed
    assert not places["marshal"] | places["shelve"] | places["dill"] | places["cloudpickle"]


def test_the_walk_finds_what_it_forbids() -> None:
    for text in (
        "import pickle; pickle.load(f)", "torch.load(f)", "x.y.np.load(f)", "eval('1')", "hydra.utils.instantiate(c)", "yaml.load(f)",
        "subprocess.run('x', shell=True)", "tar.extractall()", "os.system('x')", "importlib.import_module(name)",
    ):  # fmt: skip
        assert forbidden(text), text
    for text in (
        "model.eval()",
        "re.compile('a')",
        "subprocess.run(['x'])",
        "json.load(f)",
        "torch.compile(m)",
    ):
        assert not forbidden(text), text
