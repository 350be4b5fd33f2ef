"""Official files of every kind, converted and loaded again: every number, name and option."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from cells import ROOT
from official import AXES, eg3d_pickle, of_layout, official_modules, old_stream, save
from tiny import TINY as OFFICIAL_TINY
from tiny import camera_of, parameters
from toys import is_one_sentence

from talk3d.checkpoint import LAYOUTS, load_checkpoint, load_strict, read_layout
from talk3d.containers import read_pickle, read_pickle_file
from talk3d.convert import convert_file, load_generator
from talk3d.core import InputError, file_sha256
from talk3d.eg3d import SR_VARIANTS, Generator, GeneratorConfig
from talk3d.identity import IR_101, IR_SE50, FaceEmbedder
from talk3d.parsing import FaceParser
from talk3d.restorer import Restorer
from talk3d.triplane import RenderConfig
from talk3d.volume import RecordedDraws

TINY = GeneratorConfig(
    z_dim=16,
    mapping_width=24,
    channel_base=256,
    channel_max=8,
    neural_resolution=16,
    sr_antialias=False,
    decoder_rate=0.5,
    render=RenderConfig(samples=12, importance=6, axes="original", box=1.5, white=True),
    **SR_VARIANTS["2X"],
)


@pytest.fixture(scope="module")
def tiny() -> Generator:
    """A small generator, of which no tensor is zero or like another."""
    torch.manual_seed(5)
    generator = Generator(TINY).requires_grad_(False)
    for name, value in generator.state_dict().items():
        if not name.endswith("resample_filter"):
            value.normal_()
    return generator


def refused(path: Path, out: Path, **options) -> str:
    """The sentence with which a file is refused; nothing may be written."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InputError) as caught:
        convert_file(path, out, **options)
    told = str(caught.value)
    assert is_one_sentence(told) and (path.name in told or out.name in told), told
    assert sorted(out.parent.iterdir()) == before
    return told


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype and torch.equal(mine[name], value), name


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("bare", [False, True], ids=["dictionary", "bare"])
def test_a_generator_comes_back_whole(tiny, tmp_path, bare, axes):
    source = Generator(replace(TINY, render=replace(TINY.render, axes=axes)))
    source.load_state_dict(tiny.state_dict())
    path = save(tmp_path / "tiny.pkl", eg3d_pickle(source, bare))
    report = convert_file(path, tmp_path / "tiny.safetensors")
    generator = load_generator(tmp_path / "tiny.safetensors", axes)
    assert generator.config == source.config
    same(generator.state_dict(), tiny.state_dict())
    assert f"\nplane axes         {axes} " in report and "3 found, none executed" in report
    other = next(name for name in AXES if name != axes)
    with pytest.raises(InputError, match=f"plane_axes = '{axes}', here it is '{other}'"):
        load_generator(tmp_path / "tiny.safetensors", other)


def test_the_description_says_where_it_comes_from(tiny, tmp_path):
    path = save(tmp_path / "tiny.pkl", eg3d_pickle(tiny))
    convert_file(path, tmp_path / "tiny.safetensors")
    meta = json.loads((tmp_path / "tiny.json").read_text())
    assert meta == load_checkpoint(tmp_path / "tiny.safetensors", "generator").meta
    source = meta["source"]
    assert (source["file"], source["sha256"]) == ("tiny.pkl", file_sha256(path))
    assert (source["container"], source["class_name"]) == ("pickle", "TriPlaneGenerator")
    assert source["part"] == "part G_ema of G_ema, G, D"
    assert source["init_kwargs"]["rendering_kwargs"]["gpc_reg_prob"] == 0.5
    assert source["rendering_kwargs"]["avg_camera_pivot"] == [0, 0, 0.2]
    assert source["dataset_label_std"] == torch.linspace(0, 1, 25).tolist()
    assert source["neural_rendering_resolution"] == 16
    assert len(source["source_texts"]) == 3 and str(tmp_path) not in json.dumps(meta)


@pytest.mark.parametrize("variant", SR_VARIANTS)
def test_every_super_resolution(tmp_path, variant):
    config = replace(TINY, sr_clamp=None, **SR_VARIANTS[variant])
    source = Generator(config)
    path = save(tmp_path / "x.pkl", eg3d_pickle(source, bare=True))
    convert_file(path, tmp_path / "x.safetensors")
    assert load_generator(tmp_path / "x.safetensors").config == config


def test_options_become_config(tiny, tmp_path):
    def config_of(**rendering) -> GeneratorConfig:
        path = save(tmp_path / "x.pkl", eg3d_pickle(tiny, bare=True, **rendering))
        convert_file(path, tmp_path / "x.safetensors")
        return load_generator(tmp_path / "x.safetensors").config

    assert config_of(c_scale=0.5).condition_scale == 0.5
    assert config_of(c_scale=...).condition_scale == 0.0  # as the official code has it
    assert config_of(c_gen_conditioning_zero=True).condition_scale == 0.0
    auto = config_of(ray_start="auto", ray_end="auto", density_noise=0.25).render
    assert (auto.near, auto.far, auto.density_noise) == (None, None, 0.25)
    assert config_of(disparity_space_sampling=True).render.disparity


def test_other_parts_are_written_as_they_are(tiny, tmp_path):
    path = save(tmp_path / "x.pkl", eg3d_pickle(tiny))
    convert_file(path, tmp_path / "g.safetensors", part="G")
    assert load_generator(tmp_path / "g.safetensors").config == TINY
    report = convert_file(path, tmp_path / "d.safetensors", part="D")
    assert "against no layout" in report
    found = load_checkpoint(tmp_path / "d.safetensors", "discriminator").tensors
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "b4.conv.weight": (4, 3, 3, 3),
        "b4.out.weight": (1, 4),
    }
    told = refused(path, tmp_path / "a.safetensors", part="augment_pipe")
    assert "it has no augment_pipe; it has G_ema, G, D" in told
    assert "no part is called E" in refused(path, tmp_path / "a.safetensors", part="E")


def test_what_a_generator_may_not_be(tiny, tmp_path):
    """Each with a word of its refusal."""

    def told(plane_axes: str | None = None, **options) -> str:
        path = save(tmp_path / "x.pkl", eg3d_pickle(tiny, bare=True, **options))
        return refused(path, tmp_path / "x.safetensors", plane_axes=plane_axes)

    one, kernel = torch.ones(1), "superresolution.resample_filter"
    assert "surplus decoder.net.9.weight" in told(extra={"decoder.net.9.weight": one})
    assert "decoder.net.0.bias is (1,) instead of (64,)" in told(extra={"decoder.net.0.bias": one})
    assert "missing backbone.mapping.w_avg" in told(extra={"backbone.mapping.w_avg": ...})
    assert "another blur kernel" in told(extra={kernel: torch.ones(4, 4) / 16})
    assert "--plane-axes fixed|original" in told(axes="")
    assert "its plane axes are original, not fixed" in told("fixed")
    assert "softplus" in told(clamp_mode="relu")
    assert "super-resolution 16X is none of" in told(
        superresolution_module="training.superresolution.SuperresolutionHybrid16X"
    )
    assert "option depth_resolution is 1000000000, not in 2..4096" in told(depth_resolution=10**9)


def test_axes_that_are_not_in_the_file_are_given(tiny, tmp_path):
    path = save(tmp_path / "x.pkl", eg3d_pickle(tiny, axes=""))
    convert_file(path, tmp_path / "x.safetensors", plane_axes="fixed")
    assert load_generator(tmp_path / "x.safetensors", "fixed").config.render.axes == "fixed"


def test_noise_in_super_resolution_is_kept_and_refused(tiny, tmp_path):
    noisy = eg3d_pickle(tiny, superresolution_noise_mode="random")
    convert_file(save(tmp_path / "x.pkl", noisy), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="random noise in super-resolution"):
        load_generator(tmp_path / "x.safetensors")


def wrapped(name: str) -> dict:
    """A network in the dictionary it is published in."""
    tensors = of_layout(read_layout(name))
    if name in ("wav2lip", "lipsync_expert"):
        prefixed = {f"module.{key}": value for key, value in tensors.items()}
        optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]}
        return {"state_dict": prefixed, "optimizer": optimizer, "global_step": 9, "global_epoch": 1}
    return {"params_ema": tensors} if name == "gfpgan" else tensors


def write(path: Path, value: object, old: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize("name", LAYOUTS[1:])
def test_a_published_network_comes_back_whole(tmp_path, name):
    """The true names and shapes, in the container its project uses."""
    path = write(tmp_path / "x.pth", wrapped(name), old=name in ("syncnet", "arcface", "bisenet"))
    report = convert_file(path, tmp_path / "x.safetensors")
    assert f"holds              {name}: " in report and "every name and shape" in report
    same(load_checkpoint(tmp_path / "x.safetensors", name).tensors, of_layout(read_layout(name)))
    for file in tmp_path.iterdir():  # up to 170 MB each
        file.unlink()


FACES = {
    "gfpgan": Restorer,
    "bisenet": FaceParser,
    "arcface": partial(FaceEmbedder, IR_SE50),
    "curricularface": partial(FaceEmbedder, IR_101),
}


@pytest.mark.parametrize("name", FACES)
def test_a_face_network_loads_what_was_converted(tmp_path, name):
    """Strictly, and from a file without counters; the two identity networks share most names."""
    tensors = of_layout(read_layout(name), seed=1)
    kept = {key: value for key, value in tensors.items() if "num_batches" not in key}
    path = write(tmp_path / "x.pth", {"params_ema": kept} if name == "gfpgan" else kept)
    report = convert_file(path, tmp_path / "x.safetensors")
    path.unlink()  # up to 170 MB
    assert f"holds              {name}: " in report
    found = load_checkpoint(tmp_path / "x.safetensors", name).tensors
    (tmp_path / "x.safetensors").unlink()
    network = FACES[name]()
    load_strict(network, found, path)
    same({key: network.state_dict()[key].half() for key in kept}, kept)
    other = FaceParser() if name != "bisenet" else FaceEmbedder()
    with pytest.raises(InputError, match="does not fit"):
        load_strict(other, found, path)


def test_the_identity_networks_are_not_taken_for_each_other(tmp_path):
    """A file of one with the name of the other would load neither: depth and gates decide."""
    layouts = {name: read_layout(name) for name in ("arcface", "curricularface")}
    shared = set(layouts["arcface"]) & set(layouts["curricularface"])
    assert len(shared) > len(layouts["arcface"]) * 0.8
    for name, layout in layouts.items():
        small = {key: torch.ones(()) for key in layout}  # what it is, its names alone tell
        told = refused(write(tmp_path / "x.pth", small), tmp_path / "x.safetensors")
        shape = tuple(layout["input_layer.0.weight"])
        assert f"input_layer.0.weight is () instead of {shape}" in told, name
        assert "missing" not in told and "surplus" not in told


def test_counters_of_batch_norm_may_be_absent(tmp_path):
    tensors = of_layout(read_layout("syncnet"))
    kept = {name: value for name, value in tensors.items() if "num_batches" not in name}
    assert len(kept) < len(tensors)
    convert_file(write(tmp_path / "x.model", kept, old=True), tmp_path / "x.safetensors")
    found = load_checkpoint(tmp_path / "x.safetensors", "syncnet").tensors
    assert found["netcnnaud.1.num_batches_tracked"].item() == 0
    same({name: found[name] for name in kept}, kept)


def test_a_missing_or_surplus_name_is_told(tmp_path):
    tensors = of_layout(read_layout("syncnet"))
    write(tmp_path / "more.pth", tensors | {"one.more": torch.ones(1)})
    del tensors["netcnnaud.0.weight"]
    write(tmp_path / "less.pth", tensors)
    write(tmp_path / "whole.pth", {k: torch.ones_like(v) for k, v in tensors.items()})
    out = tmp_path / "x.safetensors"
    assert "surplus one.more" in refused(tmp_path / "more.pth", out)
    assert "missing netcnnaud.0.weight" in refused(tmp_path / "less.pth", out)
    odd = {"audio.weight": torch.ones(2), "audio.bias": torch.ones(2)}
    told = refused(write(tmp_path / "odd.pth", odd), out)
    assert "a dictionary of 2 (audio.weight, audio.bias); understood are EG3D" in told
    assert "drop --plane-axes" in refused(
        write(tmp_path / "ok.pth", of_layout(read_layout("syncnet"))), out, plane_axes="fixed"
    )


def talk3d_checkpoint() -> dict:
    """What the official training writes: state dicts, a bare tensor, and two whole objects."""
    content: dict = {"epoch": 4, "iter": 12000}
    for name, value in of_layout(read_layout("talk3d")).items():
        part, dot, rest = name.partition(".")
        (content.setdefault(part, {}) if dot else content)[rest or part] = value
    learned = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(learned.parameters(), lr=1e-4)
    learned(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content["null_vector"].requires_grad_()
    content["optimizer"] = optimizer
    content["scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return content


@pytest.mark.parametrize("tuned", [False, True], ids=["first stage", "tuned"])
def test_a_talk3d_checkpoint_comes_back_whole(tmp_path, tuned):
    content, expected = talk3d_checkpoint(), of_layout(read_layout("talk3d"))
    if tuned:
        own = Generator(replace(TINY, channel_max=8, **SR_VARIANTS["8XDC"])).superresolution
        content["superresolution"] = {k: v.half() for k, v in own.state_dict().items()}
        expected |= {f"superresolution.{k}": v for k, v in content["superresolution"].items()}
    path = write(tmp_path / "4_12000.pt", content)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # this is why there is a reader of our own
    convert_file(path, tmp_path / "x.safetensors")
    found = load_checkpoint(tmp_path / "x.safetensors", "talk3d")
    same(found.tensors, expected)
    assert (found.meta["source"]["epoch"], found.meta["source"]["iter"]) == (4, 12000)
    stub = read_pickle(path)["optimizer"]
    assert (stub.module, stub.name, stub.args) == ("torch.optim.adam", "Adam", ())
    assert stub.state["param_groups"][0]["lr"] == 1e-4


def test_half_a_talk3d_checkpoint_is_refused(tmp_path):
    content = talk3d_checkpoint()
    del content["audio_net"]
    told = refused(write(tmp_path / "x.pt", content), tmp_path / "x.safetensors")
    assert "a Talk3D checkpoint without audio_net" in told


def test_the_input_is_never_overwritten(tmp_path):
    path = write(tmp_path / "x.safetensors", of_layout(read_layout("syncnet")))
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    for out in ("x.safetensors", "link.safetensors"):
        assert "would be overwritten" in refused(path, tmp_path / out)
    (tmp_path / "folder.safetensors").mkdir()
    assert "ends in .safetensors" in refused(path, tmp_path / "folder.safetensors")
    assert "ends in .safetensors" in refused(path, tmp_path / "y.pt")
    assert path.read_bytes() == before


def test_what_torch_reads_is_read_alike(tmp_path):
    """All containers and number types, windows of one storage, and what is no tensor."""
    table = torch.arange(24.0).reshape(4, 6)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool]
    value = {
        "turned": table.T,
        "every other": table[::2, 1::3],
        "row": table[2],
        "0-d": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "learned": torch.nn.Parameter(table.clone()),
        "list": [1, -1, 2**40, 0.5, True, None, "ü"],
        "tuple": (torch.Size([1, 2]), {"a": set("x")}),
    } | {str(kind): torch.arange(-3, 4).to(kind) for kind in kinds}
    torch.save(value, tmp_path / "zip")
    save(tmp_path / "stream", old_stream(value))
    save(tmp_path / "pickle", pickle.dumps(value, 4))
    expected = torch.load(tmp_path / "zip", weights_only=True)
    for name in ("zip", "stream", "pickle"):
        found = read_pickle(tmp_path / name)
        assert list(found) == list(expected)
        for key, tensor in expected.items():
            if isinstance(tensor, torch.Tensor):
                assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape, key
                assert torch.equal(found[key], tensor), (name, key)
                assert found[key].stride() == tensor.stride(), (name, key)
            else:
                assert found[key] == tensor, (name, key)
        shares = [found[key].untyped_storage().data_ptr() for key in ("turned", "row")]
        assert len(set(shares)) == (2 if name == "pickle" else 1)


def test_the_official_pickle_is_what_its_readme_says(tiny, tmp_path):
    """All tensors of all networks, and nothing but the globals of the official files."""
    data = eg3d_pickle(tiny)
    names = {str(arg) for _, arg, _ in __import__("pickletools").genops(data) if arg is not None}
    assert "_reconstruct_persistent_obj" in names and "_load_from_bytes" in names
    assert {"ImportanceRenderer", "OSGDecoder", "EasyDict", "scalar"} <= names
    found = read_pickle_file(save(tmp_path / "x.pkl", data))
    assert list(found.content) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    layer = found.content["G_ema"].state["_modules"]["backbone"].state["_modules"]["mapping"]
    layer = layer.state["_modules"]["fc0"]
    assert (layer.name, type(layer.state["weight_gain"])) == ("FullyConnectedLayer", float)
    with pytest.raises(ModuleNotFoundError):
        __import__("torch_utils.persistence")  # the classes of the file are gone again


def test_the_golden_generator_survives_its_pickle(shared, tmp_path):
    from safetensors.torch import load_file

    golden = load_file(shared / "goldens" / "eg3d_tiny_generator.safetensors")
    weights = parameters(golden)
    kernel = weights.pop("superresolution.resample_filter")
    source = Generator(OFFICIAL_TINY)
    source.load_state_dict(weights)
    data = eg3d_pickle(source, extra={"superresolution.resample_filter": kernel})
    convert_file(save(tmp_path / "tiny.pkl", data), tmp_path / "tiny.safetensors")
    generator = load_generator(tmp_path / "tiny.safetensors", "original")
    same(generator.state_dict(), weights)
    camera = camera_of(golden["in/c"])
    w_plus = generator.latents(golden["in/z"], camera, truncation=0.7)
    torch.testing.assert_close(w_plus, golden["out/ws"], atol=1e-3, rtol=1e-3)
    planes = generator.paint(w_plus)
    crop = planes.flatten(1, 2)[:, :, 96:112, 140:156]
    torch.testing.assert_close(crop, golden["out/planes_crop"], atol=1e-3, rtol=1e-3)
    draws = RecordedDraws(golden["noise/0_rand_like"], golden["noise/1_rand"])
    official = replace(
        generator.config, render=replace(generator.config.render, sampler="official")
    )
    assert official == OFFICIAL_TINY
    generator.config = official  # the released sampler, with the random numbers of the golden
    picture = generator.picture(planes, camera, w_plus[:, -1], draws)
    torch.testing.assert_close(picture.raw, golden["out/image_raw"], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(picture.rgb, golden["out/image"], atol=1e-3, rtol=1e-3)
    depth = golden["out/image_depth"][:, 0]
    torch.testing.assert_close(picture.depth, depth, atol=1e-3, rtol=1e-3)


def test_official_modules_leave_no_trace():
    with official_modules():
        import training.triplane  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        __import__("training.triplane")


def test_layouts_are_small():
    files = list((ROOT / "talk3d" / "assets" / "layouts").iterdir())
    assert {file.stem for file in files} == set(LAYOUTS)
    assert sum(file.stat().st_size for file in files) < 200_000
