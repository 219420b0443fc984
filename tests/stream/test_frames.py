"""A stream gives each frame what it gets alone, whatever the others do, and says what became of each."""

import contextlib
import itertools
import math
import threading

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.adapters import load_model
from fewstep.prediction import each, spread
from fewstep.stream import Similar, Stream, residual, stream
from table import every_solver

SCHEDULES = {
    "edm": fs.EDM(),
    "vp": fs.VPLinear(),
    "cosine": fs.VPCosine(),
    "discrete": fs.Discrete([0.999 * 0.99**i for i in range(1000)]),
    "flow": fs.Flow(shift=3.0),
}
SHAPE = (2, 3, 5)


class Bent:
    """Data about 0.3 of deviation 1/2, bent, in operations whose bits do not depend on an element's place."""

    def __init__(self, schedule, mean=0.3):
        self.schedule, self.mean = schedule, mean
        self.batches = []

    def _gain(self, t):
        _, alpha, sigma = self.schedule.node(t)
        return alpha, alpha / (alpha**2 + 4 * sigma**2)

    def __call__(self, x, t):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        alpha, gain = spread(each(self._gain, t), x)
        self.batches.append(len(x))
        y = self.mean + gain * (x - alpha * self.mean)
        return y / (1 + y * y / 16)


def frames(count, dtype=torch.float64, size=0.5):
    return list(size * torch.randn(count, *SHAPE, dtype=dtype))


def alone(denoiser, frame, nodes, seed=0, **options):
    start = nodes[0].alpha * frame + nodes[0].sigma * fs.unit_noise([seed], SHAPE, dtype=frame.dtype)
    return fs.integrate(denoiser, start, nodes, schedule=SCHEDULES["edm"], seeds=[seed], **options)[0]


@pytest.mark.parametrize("name", SCHEDULES)
@every_solver
def test_a_run_in_the_stream_is_the_run_alone_to_the_bit(entry, name):
    denoiser, noise = Bent(SCHEDULES[name]), frames(4, size=1.0)
    options = {"nfe": 4, "solver": entry.suited(name == "flow")}
    results = list(stream(denoiser, noise, seeds=itertools.count(), **options))
    assert [result.number for result in results] == [0, 1, 2, 3]
    assert denoiser.batches == [1, 2, 3, 4, 3, 2, 1]  # each in another phase
    for i, result in enumerate(results):
        assert torch.equal(result.image, fs.sample(denoiser, noise[i][None], seeds=[i], **options)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_64_frames_through_8_phases_are_each_that_frame_alone(dtype):
    denoiser, images = Bent(fs.EDM()), frames(64, dtype)
    results = list(stream(denoiser, images, nfe=12, start=4))
    assert len(denoiser.batches) == 64 + 7  # one a frame, and the last one's others
    assert max(denoiser.batches) == 8
    nodes = fs.focused(fs.EDM(), 12)[4:]
    for i, result in enumerate(results):
        assert (result.number, result.outcome, result.image.dtype) == (i, "done", dtype)
        assert torch.equal(result.image, alone(denoiser, images[i], nodes))


def test_in_half_precision_the_state_is_float32_as_alone():
    denoiser, noise = Bent(fs.EDM()), frames(3, torch.bfloat16, size=1.0)
    for frame, result in zip(noise, stream(denoiser, noise, nfe=5), strict=True):
        assert result.image.dtype == torch.bfloat16
        assert torch.equal(result.image, fs.sample(denoiser, frame[None], nfe=5)[0])


def test_frames_of_the_packaged_model_are_each_that_frame_alone():
    pytest.importorskip("safetensors", reason="needs the extra cli")
    model = load_model(batch=2)
    noise = fs.unit_noise(range(3), model.shape)
    cats = model.conditioned(3)
    results = list(stream(cats, noise, nfe=4, phases=2))
    for i, result in enumerate(results):
        assert torch.equal(result.image, fs.sample(cats, noise[i : i + 1], nfe=4)[0])


@pytest.mark.parametrize("phases", range(1, 9))
def test_fewer_phases_take_more_calls_a_frame_and_give_the_same(phases):
    denoiser, noise = Bent(fs.EDM()), frames(10, size=1.0)
    images = [result.image for result in stream(denoiser, noise, nfe=8, phases=phases)]
    assert max(denoiser.batches) <= phases
    assert sum(denoiser.batches) == 10 * 8
    assert all(torch.equal(a, r.image) for a, r in zip(images, stream(denoiser, noise, nfe=8), strict=True))
    if phases == 1:
        line = Stream(denoiser, nfe=8, phases=1)
        assert [result.number for frame in noise for result in line.push(frame)] == list(range(10))


def test_frames_that_fail_are_told_and_touch_no_other():
    """Frame 2 holds NaN, of frame 5 the network makes inf."""
    healthy = Bent(fs.EDM())
    images = frames(9)
    images[2] = images[2].index_fill(0, torch.tensor(0), torch.nan)
    images[5] = images[5] + 1e6

    def network(x, t):
        too_large = (x.abs() > 1e5).flatten(1).any(1).reshape(-1, 1, 1, 1)
        return torch.where(too_large, torch.inf, healthy(x, t))

    results = list(stream(network, images, schedule=fs.EDM(), nfe=6, start=2))
    nodes = fs.focused(fs.EDM(), 6)[2:]
    for i, result in enumerate(results):
        assert result.number == i
        if i in (2, 5):
            assert (result.outcome, result.image) == ("failed", None)
        else:
            assert torch.equal(result.image, alone(healthy, images[i], nodes))
    assert str(results[2].error) == "the frame itself holds NaN or inf"
    assert "returned NaN or inf at call 0" in str(results[5].error)


def test_a_call_that_throws_leaves_the_runs_as_they_were():
    denoiser, noise = Bent(fs.EDM()), frames(2, size=1.0)
    line = Stream(denoiser, nfe=3)
    line.push(noise[0])
    line.denoiser = lambda x, t: 1 / 0
    with pytest.raises(ZeroDivisionError):
        line.push(noise[1])
    line.denoiser = lambda x, t: x[:, :1]
    with pytest.raises(fs.DenoiserError, match=r"shape \(2, 1, 3, 5\) for x of .* at time .*, 80;"):
        line.advance()
    line.denoiser = denoiser
    for result, frame in zip(line.flush(), noise, strict=True):
        assert torch.equal(result.image, fs.sample(denoiser, frame[None], nfe=3)[0])


class Throws:
    """A function whose calls of the given numbers throw."""

    def __init__(self, function, *numbers):
        self.function, self.numbers, self.calls = function, numbers, -1

    def __call__(self, *given):
        self.calls += 1
        if self.calls in self.numbers:
            raise MemoryError
        return self.function(*given)


class Fragile:
    """DDIM, of which some steps throw."""

    grid, calls_per_step = fs.DDIM.grid, fs.DDIM.calls_per_step

    def __init__(self, *numbers):
        self.step = Throws(lambda stage, *given: stage(*given), *numbers)

    def plan(self, *given):
        return [FragileStage(stage, self.step) for stage in fs.DDIM().plan(*given)]


class FragileStage:
    def __init__(self, stage, step):
        self.stage, self.step = stage, step
        self.node, self.noise = stage.node, stage.noise

    def __call__(self, *given):
        return self.step(self.stage, *given)


def went_on(asked):
    """All that it tells, asked on after each MemoryError."""
    told = []
    while True:
        try:
            told.extend(asked())
            return told
        except MemoryError:
            pass


THROWN = (0, 1, 4, 8)
PLAIN = {"nfe": 4, "solver": fs.DDIM(), "start": 1}
GUIDED = {**PLAIN, "scale": 1.5, "negative": Bent(fs.EDM(), -0.5)}
THROWING = {
    "the denoiser": (lambda: Throws(Bent(fs.EDM()), *THROWN), PLAIN, dict),
    "the negative": (lambda: Bent(fs.EDM()), GUIDED, lambda: {"negative": Throws(GUIDED["negative"], *THROWN)}),
    "the filter": (lambda: Bent(fs.EDM()), {**PLAIN, "skip": torch.equal}, lambda: {"skip": Throws(torch.equal, 0, 3)}),
    "the solver": (lambda: Bent(fs.EDM()), PLAIN, lambda: {"solver": Fragile(*THROWN)}),
}


@pytest.mark.parametrize(("denoiser", "options", "throwing"), THROWING.values(), ids=THROWING)
def test_whatever_throws_loses_no_frame_and_no_notice(denoiser, options, throwing):
    images = frames(8)
    images[6] = images[5]
    expected = list(stream(Bent(fs.EDM()), images[2:], seeds=itertools.count(2), **options))
    line = Stream(denoiser(), schedule=fs.EDM(), seeds=itertools.count(), **{**options, **throwing()})
    for frame in images[:2]:
        line.put(frame)
    results = []
    for frame in images[2:]:
        line.put(frame)
        results += went_on(line.advance)
    results += went_on(line.flush)
    assert [(result.number, result.outcome) for result in results[:2]] == [(0, "dropped"), (1, "dropped")]
    assert [result.number for result in results[2:]] == list(range(2, 8))
    for got, due in zip(results[2:], expected, strict=True):
        assert got.outcome == due.outcome
        assert torch.equal(got.image, due.image)
    # The same of the iterator, which holds its stream.
    given = stream(denoiser(), images[2:], schedule=fs.EDM(), seeds=itertools.count(2), **{**options, **throwing()})
    for got, due in zip(went_on(lambda: given), expected, strict=True):
        assert (got.number, got.outcome) == (due.number, due.outcome)
        assert torch.equal(got.image, due.image)


def test_no_more_than_the_phases_are_under_way_whatever_throws():
    denoiser = Bent(fs.EDM())
    line = Stream(Throws(denoiser, *range(1, 40, 2)), schedule=fs.EDM(), nfe=3, waiting=40)
    results = []
    for frame in frames(20, size=1.0):
        line.put(frame)
        with contextlib.suppress(MemoryError):
            results += line.advance()
    results += went_on(line.flush)
    assert [(result.number, result.outcome) for result in results] == [(i, "done") for i in range(20)]
    assert max(denoiser.batches) == 3


def test_a_frame_that_is_refused_loses_no_other():
    denoiser, images = Bent(fs.EDM()), frames(4, size=1.0)
    results = stream(denoiser, [*images[:2], images[0][:1], *images[2:]], nfe=3)
    with pytest.raises(ValueError, match="all frames must be like the first"):
        next(results)
    for result, frame in zip(results, images, strict=True):
        assert torch.equal(result.image, fs.sample(denoiser, frame[None], nfe=3)[0])


def test_a_model_cannot_end_the_stream():
    prompts = iter([0.3, 0.4])
    results = stream(lambda x, t: x * next(prompts), frames(3), schedule=fs.EDM(), nfe=4)
    with pytest.raises(RuntimeError, match="a model or skip raised StopIteration"):
        list(results)


def test_seeds_are_one_a_frame_whatever_becomes_of_it():
    denoiser, (one, other) = Bent(fs.EDM()), frames(2)
    shown, nodes = [one, one, other, other, one], fs.focused(fs.EDM(), 4)[1:]
    line = Stream(denoiser, nfe=4, start=1, skip=torch.equal, seeds=[5, 6, 7, 8])
    results = [result for frame in shown[:4] for result in line.push(frame)]
    for _ in range(2):  # one that is refused takes no number
        with pytest.raises(ValueError, match=r"seeds must be one a frame; there is none for frame 4: give more, or"):
            line.push(shown[4])
    results += line.flush()
    assert [(r.number, r.outcome) for r in results] == [(0, "done"), (1, "skipped"), (2, "done"), (3, "skipped")]
    for result, frame, seed in zip(results, shown, [5, 5, 7, 7], strict=False):
        assert torch.equal(result.image, alone(denoiser, frame, nodes, seed))
    given = stream(denoiser, frames(5), nfe=4, start=1, seeds=[1, 2])
    with pytest.raises(ValueError, match="there is none for frame 2"):
        list(given)


@pytest.mark.parametrize(("seed", "error"), [(None, TypeError), (1.5, TypeError), (2**64, ValueError)])
def test_a_seed_that_is_none_is_refused_as_its_frame_comes(seed, error):
    line = Stream(DENOISER, nfe=2, seeds=[seed, 3])
    with pytest.raises(error, match="seeds must"):
        line.put(torch.zeros(SHAPE))
    assert [result.outcome for result in line.push(torch.zeros(SHAPE))] == []
    assert [(result.number, result.outcome) for result in line.flush()] == [(0, "done")]


def test_the_queue_is_bounded_and_what_is_dropped_is_told():
    line = Stream(Bent(fs.EDM()), nfe=3, waiting=2)
    for frame in frames(5, size=1.0):
        line.put(frame)
    assert [(result.number, result.outcome) for result in line.advance()] == [(i, "dropped") for i in range(3)]
    assert [(result.number, result.outcome) for result in line.flush()] == [(3, "done"), (4, "done")]
    assert list(line.flush()) == []


def test_a_camera_in_another_thread_loses_no_number():
    line = Stream(Bent(fs.EDM()), nfe=2)
    camera = threading.Thread(target=lambda: [line.put(frame) for frame in frames(200, size=1.0)])
    camera.start()
    results = []
    while camera.is_alive():
        results += line.advance()
    results += line.flush()
    assert sorted(result.number for result in results) == list(range(200))
    kept = [result.number for result in results if result.outcome == "done"]
    assert kept == sorted(kept)


def test_skipped_frames_show_the_image_of_the_last_that_was_not():
    denoiser, (one, other) = Bent(fs.EDM()), frames(2)
    shown = [one, one, one, other, one, one]
    results = list(stream(denoiser, shown, nfe=4, start=1, skip=torch.equal))
    assert [result.outcome for result in results] == ["done", "skipped", "skipped", "done", "done", "skipped"]
    assert [result.number for result in results] == list(range(6))
    assert sum(denoiser.batches) == 3 * 3
    nodes = fs.focused(fs.EDM(), 4)[1:]
    for frame, result in zip(shown, results, strict=True):
        assert torch.equal(result.image, alone(denoiser, frame, nodes))


def test_after_a_frame_that_failed_the_next_is_tried():
    denoiser, (frame,) = Bent(fs.EDM()), frames(1)
    line = Stream(denoiser, nfe=3, start=1, phases=1, skip=torch.equal)
    line.denoiser = lambda x, t: x * torch.nan
    assert [result.outcome for result in line.push(frame)] == ["failed"]
    line.denoiser = denoiser
    assert [result.outcome for result in line.push(frame)] == ["done"]
    # Two phases: what was skipped while that was under way has its error.
    line = Stream(lambda x, t: x * torch.nan, schedule=fs.EDM(), nfe=3, start=1, skip=torch.equal)
    results = [*line.push(frame), *line.push(frame), *line.flush()]
    assert [(result.number, result.outcome) for result in results] == [(0, "failed"), (1, "failed")]
    assert results[1].error is results[0].error


class Buffer:
    """A camera that fills one buffer again and again."""

    def __init__(self, images):
        self.images, self.buffer = images, torch.empty_like(images[0])

    def __iter__(self):
        return (self.buffer.copy_(image) for image in self.images)


@pytest.mark.parametrize("options", [{"skip": torch.equal}, {"scale": 1.5, "above": 0.05}], ids=["skip", "guided"])
def test_a_camera_may_fill_one_buffer_again_and_again(options):
    denoiser, images = Bent(fs.EDM()), frames(4)
    apart = list(stream(denoiser, images, nfe=6, start=2, **options))
    results = list(stream(denoiser, Buffer(images), nfe=6, start=2, **options))
    assert [result.outcome for result in results] == ["done"] * 4
    assert all(torch.equal(a.image, b.image) for a, b in zip(results, apart, strict=True))


def test_frames_that_wait_may_have_come_in_one_buffer():
    denoiser, images = Bent(fs.EDM()), frames(4)
    line = Stream(denoiser, nfe=3, start=1, waiting=4)
    for frame in Buffer(images):
        line.put(frame)
    nodes = fs.focused(fs.EDM(), 3)[1:]
    for result, frame in zip(line.flush(), images, strict=True):
        assert torch.equal(result.image, alone(denoiser, frame, nodes))


def test_an_image_may_be_worked_on_in_place():
    """By who is handed it: it is neither another's nor the stream's."""
    denoiser, (one, other) = Bent(fs.EDM()), frames(2)
    shown = [one, one, one, other, one, one]
    nodes = fs.focused(fs.EDM(), 4)[1:]
    for frame, result in zip(shown, stream(denoiser, shown, nfe=4, start=1, skip=torch.equal), strict=True):
        assert torch.equal(result.image, alone(denoiser, frame, nodes))
        result.image.zero_()


@pytest.mark.parametrize(("delta", "above"), [(1.0, 0.0), (0.7, 0.0), (1.0, 0.5)])
def test_residual_guidance_by_the_frame_itself(delta, above):
    """Self-negative: no further call; above a level of noise alone, and plain below."""
    denoiser, images = Bent(fs.EDM()), frames(6)
    results = list(stream(denoiser, images, nfe=6, start=2, scale=1.6, delta=delta, above=above))
    assert sum(denoiser.batches) == 6 * 4
    nodes = fs.focused(fs.EDM(), 6)[2:]
    assert nodes[0].sigma > 0.5 > nodes[-2].sigma
    for frame, result in zip(images, results, strict=True):
        guided = fs.guided(denoiser, residual(frame[None], delta, fs.EDM()), 1.6)
        within = fs.guidance_interval(guided, denoiser, above, math.inf)
        assert torch.equal(result.image, alone(within, frame, nodes))


def test_residual_guidance_by_one_call_of_the_negative():
    """Onetime-negative: at the first call it is classifier-free guidance, and it is asked once a frame."""
    denoiser, negative, noise = Bent(fs.EDM()), Bent(fs.EDM(), mean=-0.5), frames(5, size=1.0)
    results = list(stream(denoiser, noise, nfe=4, scale=1.6, negative=negative))
    assert negative.batches == [1] * 5
    assert sum(denoiser.batches) == 5 * 4
    time = fs.focused(fs.EDM(), 4)[0].time
    for frame, result in zip(noise, results, strict=True):
        guided = fs.guided(denoiser, residual(negative(80.0 * frame[None], time)), 1.6)
        assert torch.equal(result.image, fs.sample(guided, frame[None], nfe=4, schedule=fs.EDM())[0])
    whole = fs.guided(denoiser, negative, 1.6)
    (one,) = stream(denoiser, noise[:1], nfe=1, scale=1.6, negative=negative)
    assert torch.equal(one.image, fs.sample(whole, noise[0][None], nfe=1)[0])


def test_the_stream_goes_on_with_another_prompt():
    first, second = Bent(fs.EDM()), Bent(fs.EDM(), mean=-0.3)
    line, noise = Stream(first, nfe=2, phases=1), frames(2, size=1.0)
    line.push(noise[0])
    line.denoiser = second
    (result,) = line.push(noise[1])
    assert torch.equal(result.image, fs.sample(second, noise[1][None], nfe=2)[0])


DENOISER = Bent(fs.EDM())
WRONG = {
    "no phases": ({"phases": 0}, r"phases must lie in 1 to 10, the calls of a frame; got phases=0"),
    "more phases than calls": ({"nfe": 4, "phases": 5}, r"phases must lie in 1 to 4"),
    "fewer calls by start": ({"nfe": 8, "start": 4, "phases": 5}, r"phases must lie in 1 to 4"),
    "no node": ({"nfe": 4, "start": 4}, r"start must be one of the grid's nodes 0 to 3; got start=4"),
    "no queue": ({"waiting": 0}, r"waiting must be at least 1; got waiting=0"),
    "delta alone": ({"delta": 0.5}, r"negative, delta and above are parts of residual guidance: give its scale"),
    "above all": ({"scale": 2.0, "start": 2, "above": 99}, r"above must lie in \[0, .*the first call; got above=99"),
    "no image": ({"scale": 2.0}, r"takes the frame for one, an image: give start="),
    "no calls": ({"nfe": 0}, r"nfe must be an integer of at least 1"),
    "half a node": ({"start": 1.5}, r"start must be an integer; got start=1.5"),
    "a node of a word": ({"start": "1"}, r"start must be an integer; got start='1'"),
    "a node of a truth": ({"start": True}, r"start must be an integer; got start=True"),
    "half a phase": ({"phases": 1.5}, r"phases must be an integer; got phases=1.5"),
    "half a place": ({"waiting": 1.5}, r"waiting must be an integer; got waiting=1.5"),
    "half a seed": ({"seeds": 1.5}, r"seeds must be an integer; got seeds=1.5"),
    "no scale": ({"start": 1, "scale": math.nan}, r"scale must be a finite number; got scale=nan"),
    "no delta": ({"start": 1, "scale": 2.0, "delta": math.inf}, r"delta must be a finite number; got delta=inf"),
    "no level": ({"start": 1, "scale": 2.0, "above": "1"}, r"above must be a finite number; got above='1'"),
    "no negative": ({"start": 1, "scale": 2.0, "negative": 3}, r"negative must be a function or None; got negative=3"),
    "a scale of a truth": ({"start": 1, "scale": True}, r"scale must be a finite number; got scale=True"),
    "a scale beyond a float": ({"start": 1, "scale": 10**400}, r"scale must be a finite number; got scale=100"),
    "a node of half NumPy": ({"start": np.float32(1.5)}, r"start must be an integer; got start=np.float32\(1.5\)"),
    "a node of a tensor": ({"start": torch.tensor(1.5)}, r"start must be an integer; got start=tensor\(1.5"),
    "no filter": ({"skip": 0.98}, r"skip must be a function or None; got skip=0.98"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_refused_at_the_door(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        stream(DENOISER, [], **options)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_numbers_of_numpy_are_those_of_python(kind):
    options = {"nfe": 4, "scale": 2, "delta": 1, "above": 1, "start": 1, "phases": 2, "waiting": 1, "seeds": 3}
    whole = np.issubdtype(kind, np.integer)
    given = {name: kind(value) if whole or name in ("scale", "delta", "above") else value
             for name, value in options.items()}  # fmt: skip
    (due,), (got,) = (stream(Bent(fs.EDM()), [torch.ones(SHAPE) / 2], **each) for each in (options, given))
    assert torch.equal(got.image, due.image)


def test_wrong_frames_are_refused_and_the_stream_goes_on():
    line, good = Stream(DENOISER, nfe=2), frames(1)[0]
    line.put(good)
    with pytest.raises(
        TypeError, match=r"a frame must be a tensor of floating point, .*; got ndarray \(torch\.from_numpy"
    ):
        line.put(good.numpy())
    with pytest.raises(TypeError, match=r"got \(2, 3, 5\), torch\.uint8 \(\.float\(\) / 127\.5 - 1, of an image\)$"):
        line.put(good.byte())
    with pytest.raises(TypeError, match=r"got \(2, 3, 5\), torch\.int64 \(\.float\(\)\)$"):
        line.put(good.long())
    with pytest.raises(TypeError, match=r"and not empty; got \(2, 3, 0\), torch\.float64$"):
        line.put(good[..., :0])
    with pytest.raises(ValueError, match=r"all frames must be like the first, \(2, 3, 5\), torch\.float64 on cpu; got"):
        line.put(good[:1])
    assert [result.outcome for result in line.flush()] == ["done"]


def test_the_filter_works_in_the_stream_and_is_seeded():
    def outcomes(seed):
        still = [frame + 0.05 * other for frame, other in zip(frames(1) * 40, frames(40), strict=True)]
        results = stream(DENOISER, still, nfe=4, start=2, skip=Similar(0.95, seed=seed))
        return [result.outcome for result in results]

    torch.manual_seed(0)
    first = outcomes(1)
    torch.manual_seed(0)
    assert first == outcomes(1)
    assert {"done", "skipped"} == set(first)
