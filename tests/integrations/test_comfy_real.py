"""The nodes and dropdowns in a real ComfyUI, with a model that is known exactly.

COMFYUI_SRC points to a checkout of ComfyUI, and COMFYUI_PYTHON to a Python with what it requires, if not this one.
"""

import json
import os

import pytest
import torch

import fewstep as fs
from benchmarks.problems.latents import latent_laws
from fewstep.integrations.comfy import DROPDOWN, NODE_CLASS_MAPPINGS, SHORT
from integrations.comfy_server import ComfyServer, python

if "COMFYUI_SRC" not in os.environ:
    pytest.skip("needs COMFYUI_SRC, a checkout of ComfyUI", allow_module_level=True)

KINDS = ["SD", "SD, v", "EDM", "flow", "Flux", "Cosmos"]
FLOWS = ["flow", "Flux"]
STD = 0.62  # of the data


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    server = ComfyServer(os.environ["COMFYUI_SRC"], python(), tmp_path_factory.mktemp("comfy") / "base")
    yield server
    server.close()


def ksampler(kind, batch=2, latent=("latent", 0), **options):
    """A prompt of KSampler over an empty latent; `options` are its inputs."""
    inputs = {
        "seed": 1,
        "steps": 10,
        "cfg": 1.0,
        "sampler_name": "evodiff",
        "scheduler": "fewstep",
        "denoise": 1.0,
        "model": ["exact", 0],
        "positive": ["exact", 1],
        "negative": ["exact", 2],
        "latent_image": list(latent),
    }
    return saved({**base(kind, batch), "sampler": node("KSampler", **{**inputs, **options})})


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def base(kind, batch=2):
    return {
        "exact": node("ExactModel", kind=kind),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=batch),
    }


def saved(graph, of=("sampler", 0)):
    return {**graph, "save": node("SaveLatent", samples=list(of), filename_prefix="x")}


def custom(kind, sampler, sigmas, batch=2, cfg=1.0, seed=1, latent=("latent", 0)):
    """A prompt of SamplerCustom with nodes of any kind."""
    return saved(
        {
            **base(kind, batch),
            "solver": sampler,
            "sigmas": sigmas,
            "sampler": node(
                "SamplerCustom",
                model=["exact", 0],
                add_noise=True,
                noise_seed=seed,
                cfg=cfg,
                positive=["exact", 1],
                negative=["exact", 2],
                sampler=["solver", 0],
                sigmas=["sigmas", 0],
                latent_image=list(latent),
            ),
        }
    )


def our_sigmas(steps=10, denoise=1.0, grid="auto"):
    return node("FewstepSigmas", model=["exact", 0], steps=steps, denoise=denoise, grid=grid)


def our_sampler(solver="evodiff", eta=0.0):
    return node("FewstepSampler", solver=solver, eta=eta)


def noise(seed=1, batch=2):
    """ComfyUI's."""
    return torch.randn((batch, 4, 8, 8), generator=torch.manual_seed(seed))


def rms(x):
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("kind", ["SD", "Flux"])
def test_ksampler_with_evodiff_reaches_the_exact_solution(comfy, kind):
    """Of the flow from pure noise to data of class 1: 400 steps of UniPC-3 leave 1e-6. The last level is visible."""
    flow = kind in FLOWS
    schedule = fs.Flow() if flow else fs.EDM(0.001, 14.614642)
    law = latent_laws()[1]
    start = noise().double() * (1.0 if flow else (1 + 14.614642**2) ** 0.5)
    levels = torch.cat([torch.logspace(3, -3, 400).double(), torch.zeros(1)])
    times = (levels / (1 + levels) if flow else levels[levels < 14.6]).tolist()
    times = [1.0 if flow else 14.614642, *times]
    nodes = [fs.Node(t, 1 - t if flow else 1.0, t) for t in times]
    exact = fs.integrate(law.denoiser(schedule), start, nodes, solver=fs.UniPC(order=3), schedule=schedule)
    assert rms(comfy.run(ksampler(kind, steps=15)) - exact) < 0.01 * STD
    assert rms(comfy.run(ksampler(kind, steps=15, sampler_name="euler")) - exact) > 0.03 * STD


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_sample_is_the_same(comfy, kind):
    """KSampler's dropdowns, SamplerCustom and SamplerCustomAdvanced, with and without guidance."""
    for cfg in (1.0, 5.0):
        dropdown = comfy.run(ksampler(kind, cfg=cfg))
        assert torch.equal(comfy.run(custom(kind, our_sampler(), our_sigmas(), cfg=cfg)), dropdown)
        by_name = node("KSamplerSelect", sampler_name="evodiff")
        levels = node("BasicScheduler", model=["exact", 0], scheduler="fewstep", steps=10, denoise=1.0)
        assert torch.equal(comfy.run(custom(kind, by_name, levels, cfg=cfg)), dropdown)
        assert torch.equal(comfy.run(advanced(kind, cfg)), dropdown)
        assert STD / 2 < dropdown.std() < 2 * STD


def advanced(kind, cfg, guider=None, **more):
    guider = guider or node("CFGGuider", model=["exact", 0], positive=["exact", 1], negative=["exact", 2], cfg=cfg)
    return saved(
        {
            **base(kind),
            **more,
            "guider": guider,
            "noise": node("RandomNoise", noise_seed=1),
            "solver": our_sampler(),
            "sigmas": our_sigmas(),
            "sampler": node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=["guider", 0],
                sampler=["solver", 0],
                sigmas=["sigmas", 0],
                latent_image=["latent", 0],
            ),
        }
    )


@pytest.mark.parametrize("kind", ["SD", "Flux"])
@pytest.mark.parametrize("solver", SHORT)
def test_every_solver_of_the_short_list_comes_near(comfy, kind, solver):
    near = comfy.run(custom(kind, our_sampler("unipc-2"), our_sigmas(60)))
    error = rms(comfy.run(custom(kind, our_sampler(solver), our_sigmas(20))) - near)
    assert error < (0.08 if solver == "ddim" else 0.03) * STD


def halves(kind, sampler_name, steps=14, at=7, seeds=(1, 1)):
    """Two KSamplerAdvanced, the first of which leaves its noise."""
    common = {
        "steps": steps,
        "cfg": 1.0,
        "sampler_name": sampler_name,
        "scheduler": "fewstep",
        "model": ["exact", 0],
        "positive": ["exact", 1],
        "negative": ["exact", 2],
    }
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": at, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "start_at_step": at, "end_at_step": 99, "return_with_leftover_noise": "disable"}
    parts = {
        "first": node("KSamplerAdvanced", noise_seed=seeds[0], latent_image=["latent", 0], **first, **common),
        "sampler": node("KSamplerAdvanced", noise_seed=seeds[1], latent_image=["first", 0], **second, **common),
    }
    return saved({**base(kind), **parts})


@pytest.mark.parametrize("kind", ["SD", "Flux"])
@pytest.mark.parametrize("sampler_name", DROPDOWN)
def test_two_samplers_in_a_row_are_one(comfy, kind, sampler_name):
    """KSamplerAdvanced with leftover noise, as for two experts; the second runs again where its seed changes alone."""
    whole = comfy.run(ksampler(kind, sampler_name=sampler_name, steps=14))
    tolerance = 1e-3 if sampler_name.startswith("evodiff") else 1e-5
    for seeds in ((1, 1), (1, 0))[: 1 if sampler_name == "evodiff_sde" else 2]:  # whose noise is the seed's
        got = comfy.run(halves(kind, sampler_name, seeds=seeds))
        torch.testing.assert_close(got, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_image_to_image(comfy, kind, denoise):
    """From a sample of another seed: 12 steps are near 100 of UniPC-3, from the same level."""

    def prompt(sampler, steps):
        graph = custom(kind, sampler, our_sigmas(steps, denoise), seed=5, latent=("first", 0))
        return {**graph, "first": ksampler(kind)["sampler"]}

    fine = comfy.run(prompt(our_sampler("unipc-2"), 100))
    got = comfy.run(prompt(our_sampler(), 12))
    assert rms(got - fine) < 0.03 * STD
    assert rms(got - comfy.run(ksampler(kind))) > 0.03 * STD


def test_a_mask_keeps_what_it_covers(comfy):
    """Where it is 0 the latent stays, but for the last level's noise in the model's answers; inside it is new."""
    first = ksampler("SD")["sampler"]
    graph = custom("SD", our_sampler(), our_sigmas(10), seed=5, latent=("masked", 0))
    graph |= {
        "first": first,
        "mask": node("SolidMask", value=0.0, width=64, height=64),
        "square": node("SolidMask", value=1.0, width=32, height=64),
        "both": node("MaskComposite", destination=["mask", 0], source=["square", 0], x=0, y=0, operation="add"),
        "masked": node("SetLatentNoiseMask", samples=["first", 0], mask=["both", 0]),
    }
    kept, got = comfy.run(ksampler("SD")), comfy.run(graph)
    torch.testing.assert_close(got[..., 4:], kept[..., 4:], rtol=0, atol=1e-5)
    assert rms(got[..., :4] - kept[..., :4]) > 0.1 * STD


def test_a_batch_is_its_images_one_by_one(comfy):
    whole = comfy.run(ksampler("Flux", batch=3))
    for i in range(3):
        graph = ksampler("Flux", batch=3, latent=("one", 0))
        graph["one"] = node("LatentFromBatch", samples=["latent", 0], batch_index=i, length=1)
        torch.testing.assert_close(comfy.run(graph), whole[i : i + 1], rtol=0, atol=1e-5)


GUIDERS = {
    "BasicGuider": {"model": ["exact", 0], "conditioning": ["exact", 1]},
    "DualCFGGuider": {
        "model": ["exact", 0],
        "cond1": ["exact", 1],
        "cond2": ["exact", 1],
        "negative": ["exact", 2],
        "cfg_conds": 3.0,
        "cfg_cond2_negative": 2.0,
        "style": "regular",
    },
}
PATCHES = {
    "RescaleCFG": ("SD", {"multiplier": 0.7}),
    "Mahiro": ("SD", {}),
    "CFGZeroStar": ("Flux", {}),
    "TCFG": ("SD", {}),
    "CFGNorm": ("Flux", {"strength": 1.0}),
    "VideoLinearCFGGuidance": ("SD", {"min_cfg": 1.0}),
    "DifferentialDiffusion": ("SD", {}),
    "ModelSamplingFlux": ("Flux", {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}),
    "ModelSamplingSD3": ("flow", {"shift": 4.03}),
    "ModelSamplingDiscrete": ("SD", {"sampling": "v_prediction", "zsnr": True}),
    "ModelSamplingContinuousEDM": ("EDM", {"sampling": "edm", "sigma_max": 80.0, "sigma_min": 0.002}),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_guiders(comfy, name):
    got = comfy.run(advanced("Flux", 1.0, guider=node(name, **GUIDERS[name])))
    assert STD / 2 < got.std() < 2 * STD
    if name == "BasicGuider":
        assert torch.equal(got, comfy.run(advanced("Flux", 1.0)))


@pytest.mark.parametrize("name", PATCHES)
def test_patches_of_the_model(comfy, name):
    """They change what the model says, or its levels, not how it is sampled: in the dropdown and by nodes alike."""
    kind, options = PATCHES[name]
    if not json.loads(comfy.get(f"/object_info/{name}")):
        pytest.fail(f"this ComfyUI has no {name}")
    results = []
    for graph in (ksampler(kind, cfg=4.0), custom(kind, our_sampler(), our_sigmas(), cfg=4.0)):
        for each in graph.values():
            for key, value in each["inputs"].items():
                if value == ["exact", 0]:
                    each["inputs"][key] = ["patch", 0]
        results.append(comfy.run({**graph, "patch": node(name, model=["exact", 0], **options)}))
    assert torch.equal(*results)
    assert STD / 3 < results[0].std() < 3 * STD


def test_dropdowns_hold_ours_beside_those_of_others(comfy):
    """Of one pack that was there before and one that came after, which both reload the module of samplers."""
    inputs = json.loads(comfy.get("/object_info/KSampler"))["KSampler"]["input"]["required"]
    for name in ("KSampler", "KSamplerAdvanced"):
        given = json.loads(comfy.get(f"/object_info/{name}"))[name]["input"]["required"]
        assert given["sampler_name"][0] == inputs["sampler_name"][0]
    samplers, schedulers = (inputs[name][0] for name in ("sampler_name", "scheduler"))
    for name in ("euler", "theirs", "others", *DROPDOWN):
        assert samplers.count(name) == 1
        comfy.run(ksampler("SD", sampler_name=name))
    for name in ("simple", "theirs", "others", "fewstep", "fewstep_focused"):
        assert schedulers.count(name) == 1
        comfy.run(ksampler("SD", scheduler=name))


def test_nodes_explain_themselves(comfy):
    for name in NODE_CLASS_MAPPINGS:
        info = json.loads(comfy.get(f"/object_info/{name}"))[name]
        assert info["description"]
        for group in info["input"].values():
            assert all("tooltip" in each[1] for each in group.values())
        page = comfy.get(f"/extensions/fewstep/docs/{name}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n")


def test_progress_previews_and_interrupt(comfy):
    """One message a step, each with a picture, and a run that is stopped within a step."""
    websocket = pytest.importorskip("websocket", reason="needs websocket-client")
    socket = websocket.create_connection(f"ws://127.0.0.1:{comfy.port}/ws?clientId={comfy.client}", timeout=60)

    def heard(prompt_id, at=None):
        steps, pictures = [], 0
        while True:
            message = socket.recv()
            if isinstance(message, bytes):
                pictures += message[:4] == b"\x00\x00\x00\x01" or message[:4] == b"\x00\x00\x00\x04"
                continue
            told = json.loads(message)
            if told["type"] == "progress":
                steps.append((told["data"]["value"], told["data"]["max"]))
                if told["data"]["value"] == at:
                    comfy.post("/interrupt", {})
            ended = told["type"] in ("execution_success", "execution_interrupted", "execution_error")
            if ended and told["data"]["prompt_id"] == prompt_id:
                return told["type"], steps, pictures

    kind, steps, pictures = heard(comfy.queue(ksampler("SD", seed=21, steps=8)))
    assert kind == "execution_success"
    assert steps == [(i, 8) for i in range(1, 9)]
    assert pictures >= 1  # ComfyUI leaves out those that come too fast
    kind, steps, _ = heard(comfy.queue(ksampler("SD", seed=22, steps=300, batch=16)), at=3)
    assert kind == "execution_interrupted"
    assert len(steps) < 100
    socket.close()
    comfy.run(ksampler("SD", seed=23))


LOADERS = {"MODEL": ["exact", 0], "CLIP": None, "VAE": None, "IMAGE": None}
# What stands in for nodes that need files: for the outputs of the first, in turn.
STANDS_IN = {
    "CheckpointLoaderSimple": (),
    "UNETLoader": (),
    "CLIPLoader": (),
    "DualCLIPLoader": (),
    "VAELoader": (),
    "LoadImage": (),
    "CLIPTextEncode": (["exact", 1], ["exact", 2]),
    "VAEEncode": (["latent", 0],),
    "EmptySD3LatentImage": (["latent", 0],),
    "EmptyHunyuanLatentVideo": (["latent", 0],),
    "EmptyLatentImage": (["latent", 0],),
}
UNSAVED = {"VAEDecode", "SaveImage", "SaveAnimatedWEBP", "MarkdownNote"}


def prompt_of(comfy, workflow, kind):
    """What the browser makes of a workflow: values of widgets by name, and links; with an exact model and no files."""
    sources = {link[0]: (link[1], link[2], link[5]) for link in workflow["links"]}
    of_type = {each["id"]: each["type"] for each in workflow["nodes"]}
    seen = {name: [i for i, each in of_type.items() if each == name] for name in STANDS_IN}
    graph = base(kind)

    def reference(link):
        source, slot, output = sources[link]
        if of_type[source] not in STANDS_IN:
            return [str(source), slot]
        offered = STANDS_IN[of_type[source]]
        return offered[seen[of_type[source]].index(source)] if offered else LOADERS[output]

    for each in workflow["nodes"]:
        if each["type"] in STANDS_IN:
            continue
        if each["type"] in UNSAVED:
            if each["type"] == "VAEDecode":
                graph["save"] = node("SaveLatent", samples=reference(each["inputs"][0]["link"]), filename_prefix="x")
            continue
        info = json.loads(comfy.get(f"/object_info/{each['type']}"))[each["type"]]["input"]
        linked = {given["name"]: reference(given["link"]) for given in each["inputs"]}
        values = iter(each["widgets_values"])
        inputs = {}
        for name, (given, *options) in {**info["required"], **info.get("optional", {})}.items():
            if name in linked:
                inputs[name] = linked[name]
            elif isinstance(given, list) or given in ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"):
                inputs[name] = next(values)
                if options and options[0].get("control_after_generate"):
                    next(values)
        assert next(values, None) is None
        graph[str(each["id"])] = node(each["type"], **inputs)
    return graph


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sdxl_text_to_image", "SD"),
        ("flux_text_to_image", "Flux"),
        ("image_to_image", "SD"),
        ("wan_text_to_video", "flow"),
        ("wan22_two_experts", "flow"),
    ],
)
def test_example_workflows(comfy, name, kind):
    """Found by ComfyUI, served by it, and run as they are but for what needs files."""
    assert name in json.loads(comfy.get("/api/workflow_templates"))["fewstep"]
    workflow = json.loads(comfy.get(f"/api/workflow_templates/fewstep/{name}.json"))
    got = comfy.run(prompt_of(comfy, workflow, kind))
    assert STD / 3 < got.std() < 2 * STD
