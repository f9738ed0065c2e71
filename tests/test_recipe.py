"""Recipes: what reads, what is refused, and whether the refusal helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxdistill.commands.compress import _asked, _replaced
from onnxdistill.errors import RecipeError
from onnxdistill.recipe import DistillTable, FeaturesTable, load_recipe

MINIMAL = """
name = "small"
[data]
source = "digits"
[teacher]
network = "digits-resnet"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_minimal_recipe_leaves_out_the_optional_stages(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.prune, recipe.factorize, recipe.distill, recipe.quantize) == (None, None, None, None)
    assert recipe.bench.threads == 1
    assert recipe.latency_only


@pytest.mark.parametrize("path", sorted(Path("models").glob("*/recipe.toml")), ids=lambda p: p.parent.name)
def test_every_recipe_of_the_models_folder_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.parent.name
    assert (path.parent / "README.md").is_file()


def test_unknown_key_is_refused_with_the_nearest_valid_one(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[prune]\nratio = 0.5\nmultipel_of = 8\n")
    message = refusal(path)
    assert str(path) in message
    assert "prune.multipel_of: unknown key, the nearest valid one is 'multiple_of'" in message


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ('loss = "dkd"\nmixup = 0.2', "distill.loss = 'dkd' needs one right class"),
        ("views = 4\ncutmix = 1.0", "distill.views stores what teachers say to images that are not mixed"),
        ('views = 1\nfeatures.layers = ["layer1"]', "distill.features needs the teacher in every step"),
        ("features.layers = []", "distill.features.layers = []: list should have at least 1 item"),
        ("teachers = [{network = 'a'}]", "distill.teachers.0.weights: missing"),
        (
            "teachers = [{network = 'a', weights = 'b', weight = 1}]",
            "teachers.0.weight: unknown key, the nearest",
        ),
        ("rand_augment = 31", "distill.rand_augment = 31"),
        ("teachers = [{network = 'a', weights = 'none'}]", "a network without weights has nothing to teach"),
        ("mixup = 1e-50", "mixup = 1e-50: 0.001 is the least"),
        ("views = 2", "distill.views = 2 has no effect without random changes to the images"),
        ("micro_batch = 128", "micro_batch = 128 is not less than batch_size = 128"),
        ("hard_weight = 0.0\nsoft_weight = 0.0", "there is nothing to learn from"),
        ('soft_weight = 0.0\nloss = "dkd"', "distill.loss has no effect with distill.soft_weight = 0; leave it out"),
        ("soft_weight = 0.0\ntemperature = 2.0", "distill.temperature has no effect with distill.soft_weight = 0"),
        ('features = {layers = ["a"], weight = 0.0}', "distill.features.weight = 0.0"),
        ("temperature = 1e300", "distill.temperature = 1e+300"),
        ("minutes = 1.0\nlearning_rate = 1e300", "distill.learning_rate = 1e+300"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, keys: str, part: str) -> None:
    assert part in refusal(write(tmp_path, MINIMAL + f"[distill]\nepochs = 1\n{keys}\n"))


@pytest.mark.parametrize(
    "keys", ["views = 1", "views = 2\ncrop_pad = 1", "views = 2\nflip = true", "views = 2\nrand_augment = 9"]
)
def test_views_that_differ_are_taken(tmp_path: Path, keys: str) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL + f"[distill]\nepochs = 1\n{keys}\n"))
    assert recipe.distill is not None


@pytest.mark.parametrize(
    ("keys", "rate"),
    [
        ("", 0.05),
        ('optimizer = "adam"', 0.001),
        ('optimizer = "adamw"', 0.001),
        ('optimizer = "adamw"\nlearning_rate = 0.02', 0.02),
        ("learning_rate = 0.02", 0.02),
    ],
)
def test_a_learning_rate_that_is_left_out_suits_the_optimizer(tmp_path: Path, keys: str, rate: float) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL + f"[distill]\nepochs = 1\n{keys}\n"))
    assert recipe.distill is not None
    assert recipe.distill.learning_rate == rate


def test_a_time_budget_needs_something_to_distill(tmp_path: Path) -> None:
    budget = "distill.minutes=30.0"  # as --time-budget hands it on
    wanted = "a time budget (--time-budget or distill.minutes) needs a [distill] table"
    assert wanted in refusal(write(tmp_path, MINIMAL), budget)
    assert "a time budget" not in refusal(write(tmp_path, MINIMAL), "distill.views=0")
    path = write(tmp_path, MINIMAL + "[distill]\nepochs = 3\n")
    assert wanted in refusal(path, "distill=", budget)
    recipe = load_recipe(path, [budget])
    assert recipe.distill is not None
    assert (recipe.distill.epochs, recipe.distill.minutes) == (3, 30.0)


def test_a_new_head_has_to_be_trained(tmp_path: Path) -> None:
    text = MINIMAL + 'weights = "w.pt"\nnew_head = true\n'
    assert "teacher.new_head needs teacher.weights, and a [teacher.train]" in refusal(write(tmp_path, text))


def test_paths_of_further_teachers_are_relative_to_the_recipe(tmp_path: Path) -> None:
    keys = (
        'teachers = [{network = "nets.py:make", weights = "w/a.pt"}, {network = "torchvision:vgg16", weights = "V1"}]'
    )
    recipe = load_recipe(write(tmp_path, MINIMAL + f"[distill]\nepochs = 1\n{keys}\n"))
    assert recipe.distill is not None
    first, second = recipe.distill.teachers
    assert (first.network, first.weights) == (f"{tmp_path}/nets.py:make", f"{tmp_path}/w/a.pt")
    assert (second.network, second.weights) == ("torchvision:vgg16", "V1")


def test_weights_are_a_file_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("digits-resnet", "nets.py:make") + 'weights = "checkpoint"\n')
    assert load_recipe(path).teacher.weights == f"{tmp_path}/checkpoint"
    for word in ("none", "own"):
        assert load_recipe(path, [f"teacher.weights={word}"]).teacher.weights == word
    assert load_recipe(path, ["teacher.weights=other"]).teacher.weights == f"{Path.cwd()}/other"
    published = ["teacher.network=torchvision:vgg16", "teacher.weights=V1", "data.source=folder", "data.root=x"]
    assert load_recipe(path, published).teacher.weights == "V1"
    # Of the network that it comes to be of.
    assert load_recipe(path, ["teacher.network=torchvision:vgg16", *published[2:]]).teacher.weights == "checkpoint"


def test_weights_that_a_function_loads(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    own = "teacher.weights=own"
    recipe = load_recipe(path, ["teacher.network=nets.py:make", own])
    assert not recipe.latency_only
    assert "teacher.weights = 'own' is for a MODULE:FUNCTION" in refusal(path, own)
    head = refusal(path, "teacher.network=nets.py:make", own, "teacher.new_head=true", "teacher.train.epochs=1")
    assert "teacher.new_head is for weights of a file" in head
    further = 'distill={epochs=1, teachers=[{network="digits-resnet", weights="own"}]}'
    assert "teachers.weights = 'own' is for a MODULE:FUNCTION" in refusal(path, further)


def test_networks_that_the_teacher_learns_from(tmp_path: Path) -> None:
    text = MINIMAL + "[teacher.train]\nepochs = 1\n"
    assert "teacher.train.views needs a network to learn from" in refusal(write(tmp_path, text + "views = 1\n"))
    text += 'teachers = [{network = "nets.py:make", weights = "w/a.pt"}]\n'
    recipe = load_recipe(write(tmp_path, text + "views = 1\n"))
    assert recipe.teacher.train is not None
    (followed,) = recipe.teacher.train.teachers
    assert (followed.network, followed.weights) == (f"{tmp_path}/nets.py:make", f"{tmp_path}/w/a.pt")
    assert recipe.network_names == sorted([recipe.teacher.network, followed.network])
    assert "teacher.train.views stores" in refusal(write(tmp_path, text + "views = 1\nmixup = 1.0\n"))
    nothing = "hard_weight = 0.0\nsoft_weight = 0.0\n"
    assert "teacher.train.hard_weight and .soft_weight are 0" in refusal(write(tmp_path, text + nothing))
    unheard = "teacher.train.teachers has no effect with teacher.train.soft_weight = 0"
    assert unheard in refusal(write(tmp_path, text + "soft_weight = 0.0\n"))


@pytest.mark.parametrize(
    ("tables", "part"),
    [
        ("[plan]\n", "plan needs plan.speedup or plan.latency_ms, and not both"),
        ("[plan]\nspeedup = 4.0\nlatency_ms = 1.0\n", "plan needs plan.speedup or plan.latency_ms, and not both"),
        ("[plan]\nspeedup = 1.0\n", "plan.speedup = 1.0"),
        ("[plan]\nspeedup = 4.0\n[limits]\nmin_speedup = 5\n", "plan.speedup = 4 would miss limits.min_speedup = 5"),
        (
            "[plan]\nlatency_ms = 2.0\n[limits]\nmax_latency_ms = 1.5\n",
            "plan.latency_ms = 2 would miss limits.max_latency_ms = 1.5",
        ),
        ("[plan]\nspeedup = 4.0\nmultiple_of = 3\n", "plan.multiple_of = 3"),
        ("[plan]\nspeedup = 4.0\n[prune]\nratio = 0.5\n", "plan and prune both remove channels"),
        ("[plan]\nspeedup = 4.0\nepochs = 1\n", "plan.epochs trains as [distill] says; add that table"),
        ("[plan]\nspeedup = 4.0\nsteps = 1\nepochs = 1\n[distill]\nepochs = 1\n", "no effect on plan.steps = 1"),
    ],
)
def test_plans_that_make_no_sense(tmp_path: Path, tables: str, part: str) -> None:
    assert part in refusal(write(tmp_path, MINIMAL + tables))


def test_the_budget_of_a_plan(tmp_path: Path) -> None:
    for key, budget_ms in (("speedup = 4.0", 2.0), ("latency_ms = 1.5", 1.5)):
        recipe = load_recipe(write(tmp_path, MINIMAL + f"[plan]\n{key}\n"))
        assert recipe.plan is not None
        assert recipe.plan.budget_ms(8.0) == budget_ms


def test_unknown_table_is_refused_with_the_nearest_valid_one(tmp_path: Path) -> None:
    assert "prunee: unknown key, the nearest valid one is 'prune'" in refusal(write(tmp_path, MINIMAL + "[prunee]\n"))


def test_all_errors_of_a_file_come_in_one_message(tmp_path: Path) -> None:
    text = MINIMAL.replace('"digits"', '"digitz"') + '[prune]\nratio = "half"\n[distill]\nepochs = 0\nlr = 1\n'
    message = refusal(write(tmp_path, text))
    for part in (
        "data.source = 'digitz'",
        "prune.ratio = 'half'",
        "distill.epochs = 0",
        "distill.lr: unknown key",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (MINIMAL.replace('name = "small"', "name = 3"), "name = 3"),
        (MINIMAL.replace('name = "small"', ""), "name: missing"),
        (MINIMAL + "[prune]\nratio = 1.5\n", "prune.ratio = 1.5"),
        (MINIMAL.replace('"digits"', '"folder"', 1), "data.root is needed"),
        (
            MINIMAL.replace('source = "digits"', 'source = "digits"\nmean = [0.5]'),
            "data.mean and data.std go together",
        ),
        (
            MINIMAL.replace('source = "digits"', 'source = "digits"\nmean = [78]\nstd = [0.3]'),
            "data.mean = [78.0] is not of images in 0..1; if it is of images in 0..255, divide data.mean and data.std",
        ),
        (
            MINIMAL.replace('source = "digits"', 'source = "digits"\nmean = [0.0]\nstd = [255.0]'),
            "data.std = [255.0] is not of images in 0..1",
        ),
        (
            MINIMAL.replace('source = "digits"', 'source = "digits"\nroot = "images"'),
            "data.root has no effect on data.source = 'digits'",
        ),
        (
            MINIMAL + '[distill]\nepochs = 1\noptimizer = "adam"\nmomentum = 0.8\n',
            "distill.momentum has no effect on distill.optimizer = 'adam'",
        ),
        (
            MINIMAL + "[quantize]\nepochs = 0\nlearning_rate = 0.1\n",
            "quantize.learning_rate has no effect on quantize.epochs = 0",
        ),
        ("name = 'broken", "not valid TOML"),
        (MINIMAL + "[distill]\nepochs = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"a/b", "'a/b'"),
        (r"a\\b", r"'a\\b'"),
        (r"a\nb", r"'a\nb'"),
        (r"\u0000", r"'\x00'"),
        ("", "''"),
        ("..", "'..'"),
        (" a", "' a'"),
        ("é" * 101, f"'{'é' * 20}'…"),
    ],
)
def test_names_that_no_folder_can_have(tmp_path: Path, name: str, shown: str) -> None:
    assert f"name = {shown}: it names the run folder" in refusal(write(tmp_path, MINIMAL.replace("small", name)))


@pytest.mark.parametrize(
    "setting",
    [
        f"seed={2**63}",
        "distill.learning_rate=inf",
        "distill.temperature=nan",
        "limits.max_drop=nan",
        "data.mean=[nan]",
        "data.std=[inf]",
        "distill.crop_pad=513",
        "distill.batch_size=1",
        "bench.batch=65537",
        "bench.threads=1025",
        "quantize.calibration_batch=65537",
        "data.image_size=8193",
    ],
)
def test_values_that_would_end_in_a_crash(tmp_path: Path, setting: str) -> None:
    key = setting.partition("=")[0]
    assert key in refusal(write(tmp_path, MINIMAL), "distill.epochs=1", setting)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["data.image_size=8"], "data.image_size has no effect on data.source = 'digits'"),
        (["data.resize=8"], "data.resize has no effect on data.source = 'digits'"),
        (["data.source=cifar10", "data.root=x", "data.image_size=32"], "no effect on data.source = 'cifar10'"),
        (["data.download=true"], "data.download has no effect on data.source = 'digits'"),
        (["data.source=folder", "data.root=x", "data.download=true"], "no effect on data.source = 'folder'"),
        (
            ["data.source=folder", "data.root=x", "data.resize=200"],
            "data.resize = 200 is less than data.image_size = 224",
        ),
        (
            ["data.source=folder", "data.root=x", "data.resize=31", "data.image_size=32"],
            "data.resize = 31 is less than data.image_size = 32",
        ),
        (["data.root=~nobody-of-this-name/x"], "a home folder that isn't known"),
    ],
)
def test_keys_without_effect_and_values_that_contradict(tmp_path: Path, settings: list[str], part: str) -> None:
    assert part in refusal(write(tmp_path, MINIMAL), *settings)


def test_bounds_themselves_are_valid(tmp_path: Path) -> None:
    settings = [f"seed={2**63 - 1}", "bench.batch=65536", "bench.threads=1024", f"name={'x' * 200}"]
    folder = ["data.source=folder", "data.root=x", "data.resize=32", "data.image_size=32"]
    assert load_recipe(write(tmp_path, MINIMAL), [*settings, *folder]).data.resize == 32
    assert load_recipe(write(tmp_path, MINIMAL), ["name=Größe 2"]).name == "Größe 2"


def test_missing_recipe_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.toml")
    assert "is a folder" in refusal(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(binary)


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MINIMAL.replace('source = "digits"', 'source = "folder"\nroot = "images"')
    text = text.replace('"digits-resnet"', '"nets.py:make"\nweights = "teacher.pt"')
    path = write(tmp_path, text)
    recipe = load_recipe(path)
    assert recipe.data.root == str(tmp_path / "images")
    assert recipe.teacher.weights == str(tmp_path / "teacher.pt")
    assert recipe.teacher.network == f"{tmp_path / 'nets.py'}:make"
    monkeypatch.chdir(tmp_path.parent)
    assert load_recipe(path, ["data.root=other"]).data.root == str(tmp_path.parent / "other")
    assert load_recipe(path.relative_to(tmp_path.parent)) == recipe


def test_names_of_weights_are_not_paths(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace('"digits-resnet"', '"torchvision:resnet18"\nweights = "DEFAULT"'))
    assert load_recipe(path).teacher.weights == "DEFAULT"


def test_overrides_set_nested_keys_and_leave_out_stages(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[prune]\nratio = 0.5\n[distill]\nepochs = 3\n")
    recipe = load_recipe(path, ["distill.epochs=5", "seed=7", "bench.provider=cpu", "prune="])
    assert recipe.distill is not None
    assert (recipe.distill.epochs, recipe.seed, recipe.prune) == (5, 7, None)


def test_to_leave_out_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["quantize.targets=", "plan.speedup=", "distill.features.layers="])
    assert (recipe.quantize, recipe.plan, recipe.distill) == (None, None, None)
    assert recipe == load_recipe(path)


def test_a_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_recipe(path).name


def test_malformed_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert "table.key=value" in refusal(path, "epochs")
    assert "'name' is a value, not a table" in refusal(path, "name.first=1")
    two = 'distill.teachers=[{network="digits-resnet", weights="a.pt"}, {network="digits-resnet", weights="b.pt"}]'
    for key in ("2.weights", "first.weights"):
        assert "in a list of 2. They begin with 0." in refusal(path, two, f"distill.teachers.{key}=c.pt")
    assert "that is a list" in refusal(path, two, "distill.teachers.0=c.pt")
    assert "'weights' is a value" in refusal(path, two, "distill.teachers.0.weights.a=c.pt")
    assert "there is no list that '0' could be of" in refusal(path, "teacher.train.teachers.0.weights=a.pt")
    assert "seed = -1" in refusal(path, "seed=-1")


def test_a_table_in_a_list_is_overridden_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    two = 'distill.teachers=[{network="digits-resnet", weights="a.pt"}, {network="digits-resnet", weights="b.pt"}]'
    distill = load_recipe(path, ["distill.epochs=1", two, "distill.teachers.1.weights=c.pt"]).distill
    assert distill is not None
    assert [Path(one.weights).name for one in distill.teachers] == ["a.pt", "c.pt"]


def test_a_promise_of_one_kind_replaces_the_limit_of_the_other(tmp_path: Path) -> None:
    """Or else a student as fast as asked would not ship."""
    path = write(tmp_path, MINIMAL + "\n[limits]\nmin_speedup = 4.0\n")
    asked = [*_replaced(None, 2.5), *_asked(None, 2.5, 0.5, plans=True)]
    limits = load_recipe(path, asked).limits
    assert (limits.min_speedup, limits.max_latency_ms, limits.max_drop) == (None, 2.5, 0.5)
    # One that is asked for beside it stays.
    both = [*_replaced(None, 2.5), "limits.min_speedup=3", *_asked(None, 2.5, None, plans=True)]
    assert load_recipe(path, both).limits.min_speedup == 3.0
    assert _replaced(None, None) == []
    path.write_text(MINIMAL + "\n[limits]\nmax_latency_ms = 1.0\n")
    limits = load_recipe(path, [*_replaced(4.0, None), *_asked(4.0, None, None, plans=True)]).limits
    assert (limits.min_speedup, limits.max_latency_ms) == (4.0, None)


def test_what_cannot_follow_layers_follows_what_else_there_is() -> None:
    features = FeaturesTable(layers=["layer1"])
    both = DistillTable(epochs=1, hard_weight=0.0, soft_weight=2.0, features=features).without_features()
    assert (both.features, both.soft_weight) == (None, 2.0)
    layers_alone = DistillTable(epochs=1, hard_weight=0.0, soft_weight=0.0, features=features, loss="dkd")
    assert layers_alone.without_features().soft_weight is None
