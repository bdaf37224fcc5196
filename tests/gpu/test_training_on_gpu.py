"""What only a CUDA device shows; `pytest tests/gpu` runs it where there is one."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from automonai.domain.configuration import Configuration, Convolution, Flips, LossName
from automonai.domain.plan import NetworkPlan, make_plan
from automonai.domain.request import StudyData, TrainRequest
from automonai.domain.run import FailureReason, Result, Run, RunState
from automonai.domain.splitting import make_split
from automonai.imaging.augmentation import Augmentation
from automonai.imaging.checking import check_dataset
from automonai.imaging.fingerprinting import fingerprint
from automonai.imaging.patches import PatchReader
from automonai.imaging.phantom import write_phantom
from automonai.imaging.preprocessing import prepare_case
from automonai.learning import inference, network
from automonai.learning.batches import batch_source, read_ahead
from automonai.learning.checkpoint import Progress, read_member
from automonai.learning.forward import RecordedForward
from automonai.learning.inference import WindowSettings, logit_slabs, whole_logits
from automonai.learning.loop import Trainer
from automonai.learning.losses import make_loss
from automonai.learning.memory import release_gpu_memory
from automonai.learning.network import build_network, place
from automonai.learning.precision import Precision
from automonai.learning.training import failed_result, train_run
from automonai.spec import ExecutionSpec, TrainingSpec
from automonai.storage.local import LocalStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=8, shape=(32, 32, 24), seed=0)
    checked = check_dataset(folder)
    split = make_split([case.id for case in checked.dataset.cases], test=0, folds=2, seed=0)
    return StudyData(
        dataset=checked.dataset,
        split=split,
        fingerprint=fingerprint(checked, split.development),
        training=TrainingSpec(patch_voxels=(32, 32, 24)),
        execution=ExecutionSpec(device="cuda"),
    )


def train(
    data: StudyData,
    folder: Path,
    *,
    epochs: int = 4,
    most_gpus: int = 1,
    resume_from: str | None = None,
    **choices: object,
) -> Result:
    request = TrainRequest(
        run=Run(trial=0, budget_epochs=epochs),
        configuration=Configuration.model_validate({"depth": 3, "channels": 8, **choices}),
        seed=1,
        resume_from=resume_from,
    )
    store = LocalStore(folder / "store")
    return train_run(
        request, data, store=store, cache_folder=folder / "cache", stop=threading.Event(), most_gpus=most_gpus
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_network_learns_in_every_precision(data: StudyData, tmp_path: Path, precision: str) -> None:
    execution = data.execution.model_copy(update={"precision": precision})
    result = train(data.model_copy(update={"execution": execution}), tmp_path, epochs=30)
    assert result.state is RunState.COMPLETE
    assert result.curve[-1].training_loss < 0.8 * result.curve[0].training_loss
    assert result.peak_memory_bytes is not None


@pytest.mark.parametrize("begun_on", ["cpu", "cuda"])
@pytest.mark.parametrize(("precision", "convolution"), [("bfloat16", "3d"), ("float16", "3d"), ("bfloat16", "2d")])
def test_a_training_goes_on_whatever_it_was_begun_on(
    data: StudyData, tmp_path: Path, begun_on: str, precision: str, convolution: str
) -> None:
    on_gpu = data.execution.model_copy(update={"precision": precision})
    begun = on_gpu if begun_on == "cuda" else ExecutionSpec(device="cpu", precision="float32")
    lower = train(data.model_copy(update={"execution": begun}), tmp_path, epochs=3, convolution=convolution)
    assert lower.checkpoint is not None
    higher = train(
        data.model_copy(update={"execution": on_gpu}),
        tmp_path,
        epochs=20,
        resume_from=lower.checkpoint,
        convolution=convolution,
    )
    assert higher.state is RunState.COMPLETE
    assert higher.epochs == 17
    assert higher.curve[-1].training_loss < lower.curve[-1].training_loss


@pytest.mark.parametrize("loss", list(LossName))
@pytest.mark.parametrize("convolution", ["2d", "3d"])
def test_every_loss_trains_in_2d_and_3d(data: StudyData, tmp_path: Path, loss: LossName, convolution: str) -> None:
    result = train(data, tmp_path, epochs=1, loss=loss, convolution=convolution, flips=Flips.ALL)
    assert result.state is RunState.COMPLETE


def test_a_compiled_network_trains(data: StudyData, tmp_path: Path) -> None:
    execution = data.execution.model_copy(update={"compile": True})
    assert train(data.model_copy(update={"execution": execution}), tmp_path).state is RunState.COMPLETE


def test_too_little_gpu_memory_is_a_failed_run_with_its_peak(data: StudyData, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            train(data, tmp_path, channels=64, first_stride=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    request = TrainRequest(run=Run(trial=0, budget_epochs=4), configuration=Configuration(), seed=1)
    result = failed_result(request, raised.value)
    assert result.reason is FailureReason.OUT_OF_MEMORY
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 0


def test_large_features_are_normalised_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = NetworkPlan(
        spatial_dims=3, in_channels=2, out_channels=3, channels=(8, 16, 32), strides=(1, 2), residual_units=2
    )
    net = place(build_network(plan, slice_axis=2), torch.device("cuda"))
    image_BCXYZ = torch.randn(2, 2, 32, 32, 16, device="cuda")
    logits, gradients = [], []
    for large in (1, 2**62):
        monkeypatch.setattr(network, "_LARGE_SAMPLE", large)
        net.zero_grad()
        logits.append(net(image_BCXYZ))
        logits[-1].square().mean().backward()
        gradients.append([weight.grad.clone() for weight in net.parameters()])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("convolution", ["2d", "3d"])
def test_a_recorded_network_takes_the_steps_of_the_network(data: StudyData, precision: str, convolution: str) -> None:
    configuration = Configuration(depth=3, channels=8, batch_size=4, convolution=Convolution(convolution))
    plan = make_plan(configuration, dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn((size, 1, *plan.patch_voxels), generator=generator).cuda(),
            torch.randint(3, (size, *plan.patch_voxels), generator=generator).cuda(),
        )
        for size in (4, 3, 4, 4, 3)
    ]
    losses = {}
    for is_recorded in (False, True):
        torch.manual_seed(0)
        trainer = Trainer(
            plan,
            place(build_network(plan.network, slice_axis=plan.slice_axis), torch.device("cuda")),
            loss_of=make_loss(configuration.loss),
            precision=Precision(torch.device("cuda"), getattr(torch, precision)),
            progress=Progress(seed=0, steps_per_epoch=5),
        )
        if is_recorded:
            trainer.forward = RecordedForward(trainer.network, plan, precision=trainer.precision, batch_sizes=[3, 4])
        losses[is_recorded] = [trainer.update(*batch, learning_rate=1e-3) for batch in batches]
    assert len(set(losses[True])) == len(batches)
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_a_recorded_network_gives_its_memory_back(data: StudyData) -> None:
    plan = make_plan(Configuration(), dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    network = place(build_network(plan.network, slice_axis=plan.slice_axis), torch.device("cuda"))
    precision = Precision(torch.device("cuda"), torch.bfloat16)
    release_gpu_memory()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        forward = RecordedForward(network, plan, precision=precision, batch_sizes=[4])
        forward(torch.zeros((4, 1, *plan.patch_voxels), device="cuda")).sum().backward()
        network.zero_grad()
        recorded = torch.cuda.memory_reserved()
        del forward
        release_gpu_memory()
    assert recorded > before + 10 * 2**20
    assert torch.cuda.memory_reserved() < before + 2**21


def test_batches_made_beside_a_step_are_those_made_alone(data: StudyData, tmp_path: Path) -> None:
    device = torch.device("cuda")
    plan = make_plan(Configuration(), dataset=data.dataset, fingerprint=data.fingerprint, training=data.training)
    cases = [
        prepare_case(data.dataset, case, spacing_mm=None, crop=plan.configuration.crop, cache_folder=tmp_path)
        for case in data.dataset.cases
    ]
    augmentation = Augmentation.of(plan)
    reader = PatchReader(cases, plan, seed=0, margin_voxels=augmentation.margin_voxels)
    make = batch_source(reader, augmentation, seed=0, device=device)
    busy = torch.randn(4096, 4096, device=device)
    with closing(read_ahead(make, 0, threads=4)) as batches:
        for step, (image_BCXYZ, label_BXYZ) in zip(range(20), batches, strict=False):
            for _ in range(4):
                busy = (busy @ busy).tanh()
            alone_BCXYZ, alone_BXYZ = make(step)
            torch.testing.assert_close(image_BCXYZ, alone_BCXYZ)
            assert torch.equal(label_BXYZ, alone_BXYZ)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices here")
def test_two_gpus_train_what_one_trains(data: StudyData, tmp_path: Path) -> None:
    execution = data.execution.model_copy(update={"precision": "float32"})
    data = data.model_copy(update={"execution": execution})
    one, two = (train(data, tmp_path / str(gpus), most_gpus=gpus) for gpus in (1, 2))
    assert two.device is not None
    assert two.device.startswith("2 x ")
    assert [point.training_loss for point in two.curve] == pytest.approx(
        [point.training_loss for point in one.curve], rel=1e-3
    )
    assert [point.validation_loss for point in two.curve] == pytest.approx(
        [point.validation_loss for point in one.curve], rel=1e-2
    )


def test_the_gpu_predicts_what_the_cpu_predicts_wherever_the_sums_are_held(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(data, tmp_path, epochs=20)
    assert result.checkpoint is not None
    plan, member = read_member(LocalStore(tmp_path / "store"), result.checkpoint, tmp_path / "member")
    case = prepare_case(
        data.dataset,
        data.dataset.cases[0],
        spacing_mm=plan.spacing_mm,
        crop=plan.configuration.crop,
        cache_folder=tmp_path / "cache",
    )
    labels = []
    for name, sums_share in (("cpu", 4), ("cuda", 4), ("cuda", 2**60)):
        monkeypatch.setattr(inference, "_ROOM_SHARE", sums_share)
        device = torch.device(name)
        slabs = logit_slabs(
            [place(member, device)],
            case.image,
            plan=plan,
            statistics=case.statistics,
            settings=WindowSettings(device),
        )
        labels.append(whole_logits(slabs, (plan.network.out_channels, *case.image.shape[1:])).argmax(0))
    assert all((label == labels[0]).mean() > 0.999 for label in labels[1:])
