"""The JSON that goes out and comes in, with examples: what OpenAPI says of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewshot.datasets import MAX_LABEL_LENGTH


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": values})


_SUPPORT = {
    "support_id": 17,
    "label": "corn-rust",
    "file": "IMG_2041.jpg",
    "width": 3024,
    "height": 4032,
    "own_similarity": 0.61,
    "added_at": "2026-05-04T09:12:33.120+00:00",
}
_MATCH = {"label": "corn-rust", "similarity": 0.62, "probability": 0.94}
_NEIGHBOUR = {"support_id": 17, "label": "corn-rust", "similarity": 0.71, "file": "IMG_2041.jpg"}
_PREDICTION = {
    "file": "leaf.jpg",
    "answer": "corn-rust",
    "reason": "match",
    "message": "similarity 0.62 to corn-rust, 0.31 to the next: familiarity 0.55, above the threshold 0.29 of this "
    "index",
    "matches": [_MATCH],
    "nearest": [_NEIGHBOUR],
}
_REFUSED = {"file": "notes.txt", "code": "not_an_image", "message": "notes.txt is not a picture. Supported: JPEG."}


class ErrorFacts(BaseModel):
    """What went wrong, for programs (`code`) and for people (`message`, and what to do: `hint`)."""

    model_config = _example(code="unknown_label", message="index 'plants' holds no class 'corn-rusty'.", hint="...")
    code: str
    message: str
    hint: str


class ErrorBody(BaseModel):
    """The one shape of every error."""

    model_config = _example(
        error={
            "code": "unknown_label",
            "message": "index 'plants' holds no class 'corn-rusty' (it holds 2).",
            "hint": "Did you mean 'corn-rust'?",
        }
    )
    error: ErrorFacts


class Match(BaseModel):
    """A class that the photo resembles."""

    model_config = _example(**_MATCH)
    label: str
    similarity: float = Field(
        description="Cosine to the class's nearest prototype; that of few photos is corrected upwards."
    )
    probability: float = Field(
        ge=0, le=1, description="Among the classes asked; of an `unknown` photo, if it is one of them after all."
    )


class Neighbour(BaseModel):
    """An enrolled photo near the one asked."""

    model_config = _example(**_NEIGHBOUR)
    support_id: int
    label: str
    similarity: float
    file: str


class Prediction(BaseModel):
    """The answer to one photo, as `fewshot query --json` gives it."""

    model_config = _example(**_PREDICTION)
    file: str = Field(description="The photo's name; asked `together`, those of all with ` + ` between.")
    files: list[str] | None = Field(
        None, description="The names of the photos answered together, one by one; only where `together` was asked for."
    )
    answer: str = Field(description="A label, or `unknown`.")
    reason: Literal["match", "ambiguous", "unknown", "bad_image"]
    message: str
    matches: list[Match]
    nearest: list[Neighbour]
    covering: list[str] | None = Field(
        None, description="Labels that cannot be ruled out; only where `coverage` was asked for."
    )


class Answers(BaseModel):
    """Answers in the order of the photos."""

    model_config = _example(predictions=[_PREDICTION])
    predictions: list[Prediction]


class ClassSummary(BaseModel):
    """A class in the list of classes."""

    model_config = _example(label="corn-rust", supports=12, prototypes=1, cover=17)
    label: str
    supports: int
    prototypes: int
    cover: int | None = Field(description="The photo that was enrolled first; null if another process is enrolling.")


class Classes(BaseModel):
    """Every class, in label order."""

    model_config = _example(classes=[{"label": "corn-rust", "supports": 12, "prototypes": 1, "cover": 17}])
    classes: list[ClassSummary]


class Support(BaseModel):
    """An enrolled photo. `own_similarity` is its cosine to the rest of its class; null where it is alone."""

    model_config = _example(**_SUPPORT)
    support_id: int
    label: str
    file: str
    width: int
    height: int
    own_similarity: float | None
    added_at: str


class LooksLike(BaseModel):
    """The class that a photo is nearer to than to its own."""

    model_config = _example(label="corn-blight", similarity=0.58)
    label: str
    similarity: float


class ClassPhoto(Support):
    """A photo of a class. `looks_like` is null unless the photo is suspicious."""

    model_config = _example(**_SUPPORT, looks_like={"label": "corn-blight", "similarity": 0.58})
    looks_like: LooksLike | None


class Class(BaseModel):
    """A class from inside, as `fewshot inspect` shows it, and its photos."""

    model_config = _example(
        label="corn-rust",
        supports=1,
        prototypes=1,
        similarity=0.58,
        spread=0.07,
        confusable=[{"label": "corn-blight", "similarity": 0.4}],
        photos=[{**_SUPPORT, "looks_like": {"label": "corn-blight", "similarity": 0.58}}],
    )
    label: str
    supports: int
    prototypes: int
    similarity: float | None = Field(description="How alike its photos are: the mean of their own similarities.")
    spread: float | None
    confusable: list[LooksLike]
    photos: list[ClassPhoto]


class Refused(BaseModel):
    """A photo that was not enrolled, and why."""

    model_config = _example(**_REFUSED)
    file: str
    code: str
    message: str


_ENROLLED = {
    "label": "corn-rust",
    "enrolled": 8,
    "already_there": 1,
    "refused": [_REFUSED],
    "support_ids": [11, 12, 13, 14, 15, 16, 17, 18],
    "warnings": ["1 photo of 'corn-rust' looks more like another class: IMG_7.jpg. Right label?"],
}


class Enrolled(BaseModel):
    """What an enrolment did, and what a careful person would look at."""

    model_config = _example(**_ENROLLED)
    label: str
    enrolled: int
    already_there: int
    refused: list[Refused]
    support_ids: list[int] = Field(description="Of the photos that are new.")
    warnings: list[str]


class Replaced(Enrolled):
    """What a replacement did."""

    model_config = _example(**_ENROLLED, removed=3)
    removed: int = Field(description="Photos that the class had before and has no longer.")


class Renaming(BaseModel):
    """The new label of a class."""

    model_config = _example(label="corn-common-rust")
    label: Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]


class Renamed(BaseModel):
    """A class under its new label."""

    model_config = _example(label="corn-common-rust", was="corn-rust", warnings=[])
    label: str
    was: str
    warnings: list[str]


class Removed(BaseModel):
    """What a removal took away."""

    model_config = _example(label="corn-rust", removed=12)
    label: str
    removed: int = Field(description="How many photos.")


class Point(BaseModel):
    """An enrolled photo on the map; `z` is null in two dimensions."""

    model_config = _example(support_id=17, label="corn-rust", file="IMG_2041.jpg", x=0.1, y=-0.4, z=0.2)
    support_id: int
    label: str
    file: str
    x: float
    y: float
    z: float | None


class Projection(BaseModel):
    """Enrolled photos on a map of their embeddings."""

    model_config = _example(
        method="pca",
        dims=3,
        generation=41,
        supports=1,
        points=[{"support_id": 17, "label": "corn-rust", "file": "IMG_2041.jpg", "x": 0.1, "y": -0.4, "z": 0.2}],
    )
    method: str
    dims: int
    generation: int = Field(description="The change of the index that the map is of.")
    supports: int = Field(description="Photos enrolled; where there are more than the map takes, it shows some of all.")
    points: list[Point]


class Health(BaseModel):
    """Whether the service lives, and whether it can answer."""

    model_config = _example(
        live=True, ready=True, index="plants", classes=50, supports=780, generation=41, waiting=0, version="0.1.0"
    )
    live: bool
    ready: bool
    index: str
    classes: int
    supports: int
    generation: int
    waiting: int = Field(description="Photos accepted and not yet answered.")
    version: str


class Session(BaseModel):
    """What this client may do here, and the limits that it should keep."""

    model_config = _example(
        token="field-phone",
        scopes=["read", "write"],
        read_needs_token=False,
        max_files=64,
        max_body_bytes=128_000_000,
        max_label_length=200,
    )
    token: str | None
    scopes: list[Literal["read", "write"]]
    read_needs_token: bool
    max_files: int
    max_body_bytes: int
    max_label_length: int
