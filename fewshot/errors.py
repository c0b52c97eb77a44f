"""Every error that a user can meet, with its code, hint, exit code and HTTP status."""

import difflib
import errno
from collections.abc import Iterable
from typing import ClassVar


class FewshotError(Exception):
    """What went wrong, in a message that says what was found, what was wanted and what to do.

    The class carries what the two edges (command line, HTTP) need to translate it; the instance carries the
    message. `hint` may be given per instance where what to do depends on the case.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1  # 1: the work failed; 2: the request itself was wrong
    status: ClassVar[int] = 500
    hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    @property
    def said(self) -> str:
        """Message and hint in one line, for where an error is told among other things."""
        return f"{self.message} {self.hint}".strip()

    def as_dict(self) -> dict[str, str]:
        """The one shape in which every interface shows an error: code, message, hint."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def nearest_name(wanted: str, known: Iterable[str]) -> str | None:
    """The known name closest to `wanted`, or None when nothing comes near.

    >>> nearest_name("corn-rusty", ["corn-rust", "apple-scab"])
    'corn-rust'
    """
    lowered = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(wanted.casefold(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known name, or an empty string.

    >>> did_you_mean("aple", ["apple", "corn"])
    "Did you mean 'apple'?"
    """
    near = nearest_name(wanted, known)
    return f"Did you mean {near!r}?" if near else ""


def is_disk_full(error: OSError) -> bool:
    """Whether there is no space left for what was to be written: on the disk, or within the user's quota.

    >>> is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded")), is_disk_full(PermissionError())
    (True, False)
    """
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class UsageError(FewshotError):
    """The request contradicts itself or asks for something that does not exist."""

    code = "usage"
    exit_code = 2
    status = 400


class OutputError(FewshotError):
    """What a command has to say cannot be written to where its output goes."""

    code = "output"
    hint = "What was done is kept. Free some space or send the output elsewhere, and run the same command again."


class MissingExtraError(FewshotError):
    """The work needs libraries of an extra that is not installed."""

    code = "missing_extra"
    status = 501


# ---- photos and folders


class ImageError(FewshotError):
    """A photo cannot be used. Refused with its reason; the photos beside it go on."""

    code = "bad_image"
    status = 422


class NotAnImageError(ImageError):
    code = "not_an_image"
    hint = "Supported: JPEG, PNG, WebP, TIFF, BMP and GIF."


class EmptyFileError(ImageError):
    code = "empty_file"
    hint = "The file has 0 bytes: copy it again from the camera or the card."


class TruncatedImageError(ImageError):
    code = "truncated"
    hint = "The file ends too early: copy it again from the camera or the card."


class DamagedImageError(ImageError):
    code = "damaged"
    hint = "The picture data is broken: copy it again, or open and save it in a picture editor."


class ImageTooSmallError(ImageError):
    code = "too_small"
    hint = "Take the original photo, not its preview."


class ImageTooLargeError(ImageError):
    code = "too_large"
    status = 413
    hint = "Scale the photo down, or raise the limit with FEWSHOT_MAX_MEGAPIXELS."


class ImageStoppedError(ImageError):
    """Decoding took more memory or time than one photo is given, or ended the process that did it."""

    code = "stopped"
    hint = "Such a file may be made to do harm. Leave it out; if you trust it, open and save it in a picture editor."


class UnreadableFileError(ImageError):
    code = "unreadable"
    hint = "Check that the file exists and that you may read it."


class OtherLabelError(ImageError):
    """The same photo, byte for byte, is already enrolled under another label."""

    code = "other_label"
    status = 409
    hint = "A photo shows one class. Remove it there first, or leave it out here."


class FolderError(FewshotError):
    code = "folder"
    exit_code = 2
    status = 400


class MissingFolderError(FolderError):
    code = "missing_folder"


class EmptyFolderError(FolderError):
    code = "empty_folder"


class NestedFolderError(FolderError):
    code = "nested_folder"


class StrictError(FewshotError):
    """`--strict` was asked for and a photo was refused or left out: nothing was enrolled."""

    code = "strict"
    status = 422


# ---- labels


class LabelError(FewshotError):
    code = "bad_label"
    exit_code = 2
    status = 400


class UnknownLabelError(FewshotError):
    code = "unknown_label"
    exit_code = 2
    status = 404

    def __init__(self, label: str, index_name: str, known: Iterable[str]) -> None:
        known = list(known)
        super().__init__(
            f"index {index_name!r} holds no class {label!r} (it holds {len(known)}).",
            hint=did_you_mean(label, known) or "`fewshot classes` lists what is enrolled.",
        )


class LabelTakenError(FewshotError):
    code = "label_taken"
    exit_code = 2
    status = 409


class UnknownSupportError(FewshotError):
    code = "unknown_support"
    exit_code = 2
    status = 404
    hint = "It may have been removed; `fewshot inspect LABEL --photos` lists the photos of a class."


class LastSupportError(FewshotError):
    """A class without photos could not be recognised, so its last photo goes only with it."""

    code = "last_support"
    exit_code = 2
    status = 409


# ---- the index


class IndexProblem(FewshotError):
    """An index cannot be used as it is."""

    code = "index"


class IndexMissingError(IndexProblem):
    code = "index_missing"
    exit_code = 2
    status = 404


class NoFittingClassError(FewshotError):
    code = "no_class_fits"
    exit_code = 2
    status = 404
    hint = "`fewshot classes` lists what is enrolled."


class EmptyIndexError(IndexProblem):
    code = "index_empty"
    status = 409
    hint = "Enroll a class first: `fewshot enroll LABEL FOLDER`."


class NotAnIndexError(IndexProblem):
    code = "not_an_index"
    exit_code = 2
    status = 400


class NewerFormatError(IndexProblem):
    code = "newer_format"


class IndexDamagedError(IndexProblem):
    code = "index_damaged"


class IndexLockedError(IndexProblem):
    code = "index_locked"
    status = 503
    hint = "Another process is writing. Wait for it to end, or stop it, and try again."


class IndexUnwritableError(IndexProblem):
    code = "index_unwritable"


class DiskFullError(IndexProblem):
    code = "disk_full"
    status = 507
    hint = "Free some space and run the same command again: photos already enrolled are kept and skipped."


class DatabaseUnreachableError(IndexProblem):
    """The server that holds an index does not answer, or has just gone away. Nothing is said of the index itself."""

    code = "database_unreachable"
    status = 503
    hint = "Check that the server runs and can be reached, then try again; photos already enrolled are skipped."


class DatabaseAccessError(IndexProblem):
    """The server that holds an index does not let this user do what is needed."""

    code = "database_access"


class PgvectorMissingError(IndexProblem):
    code = "no_pgvector"


class CopyError(IndexProblem):
    """An index cannot be copied to where it should go, or what arrived is not what was sent."""

    code = "copy"


class MixedEmbeddingsError(IndexProblem):
    """Embeddings of two backbones, preprocessings or precisions cannot be compared."""

    code = "mixed_embeddings"
    exit_code = 2
    status = 409


class IndexExistsError(IndexProblem):
    """An index stands where a backup shall be restored to."""

    code = "index_exists"
    exit_code = 2
    status = 409


class BackupError(FewshotError):
    """A backup cannot be found, read or written."""

    code = "backup"


class BackupMissingError(BackupError):
    code = "backup_missing"
    exit_code = 2
    status = 404


class BackupDamagedError(BackupError):
    code = "backup_damaged"
    hint = "Take another backup: a damaged one is never restored from, not even in part."


class OtherIndexError(BackupError):
    """A backup holds another index than the one that it shall replace."""

    code = "other_index"
    exit_code = 2
    status = 409


class PrototypeError(FewshotError):
    """A class has no usable prototype: no support, or supports that cancel out."""

    code = "prototype"


class VectorError(FewshotError):
    """Vectors that an index of embeddings cannot hold: wrong length, NaN, infinite, or an id given twice."""

    code = "bad_vectors"


class CacheDamagedError(FewshotError):
    """A derived file is damaged or stale. Never fatal: it is rebuilt from the store."""

    code = "cache_damaged"


class GuardError(FewshotError):
    """The guarded process that decodes photos cannot be started, or does not do its work."""

    code = "guard"


# ---- backbones and engines


class BackboneError(FewshotError):
    code = "backbone"


class UnknownBackboneError(BackboneError):
    code = "unknown_backbone"
    exit_code = 2
    status = 404


class WeightsUnreachableError(BackboneError):
    code = "weights_unreachable"
    status = 503


class WeightsDamagedError(BackboneError):
    code = "weights_damaged"


class EngineError(FewshotError):
    code = "engine"


# ---- a cluster


class ClusterError(FewshotError):
    """A cluster could not do its work. What is enrolled is kept."""

    code = "cluster"
    status = 503
    hint = "Run the same command again: photos already enrolled are skipped."


class ClusterUnreachableError(ClusterError):
    code = "cluster_unreachable"


# ---- training


class RecipeError(FewshotError):
    """A recipe cannot be understood: an unknown key, a value that cannot be, or settings that contradict each other."""

    code = "recipe"
    exit_code = 2
    status = 400


class TrainingError(FewshotError):
    """A training cannot start or go on. What was trained before is kept."""

    code = "training"


class TooFewPhotosError(TrainingError):
    code = "too_few_photos"
    exit_code = 2
    status = 422


class NotFiniteError(TrainingError):
    """The loss, a weight or an embedding became NaN or infinite. The last good epoch is kept."""

    code = "loss_not_finite"


class TrainingStoppedError(TrainingError):
    """Somebody stopped the training with Ctrl-C. The last whole epoch is kept, if there is one."""

    code = "training_stopped"
    hint = "Run the same command again: it goes on from the last whole epoch."


class TrainingDiskFullError(TrainingError):
    code = "training_disk_full"
    status = 507
    hint = "Free some space and run the same command again: it goes on from the last whole epoch, if there is one."


# ---- watching


class RoutesError(FewshotError):
    """The table that says who is sent to what cannot be understood."""

    code = "routes"
    exit_code = 2
    status = 400


class WatchStateError(FewshotError):
    """The memory of a watch cannot be used. What it holds already is kept."""

    code = "watch_state"


class WatchRunningError(WatchStateError):
    code = "watch_running"
    status = 409
    hint = "One watch of a folder and an index runs at a time. Stop the other, or give this one another --state."


class DeliveryError(FewshotError):
    """Answers could not be handed over. They are kept, and handed over later."""

    code = "delivery"
    status = 502
    retry_after_s: float | None = None  # what the receiver asks for


class ReceiverRefusedError(DeliveryError):
    """A receiver will not take this one answer, however often it is sent."""

    code = "receiver_refused"


# ---- projection


class ProjectionError(FewshotError):
    """A picture of the space cannot be made."""

    code = "projection"


class TooFewPointsError(ProjectionError):
    code = "too_few_points"
    status = 422
    hint = "Enroll more photos: a picture of the space begins with a few classes of 5 photos."


class NeighbourCountError(ProjectionError):
    code = "bad_neighbours"
    exit_code = 2
    status = 400


class OutputFolderError(ProjectionError):
    """The folder that results shall go to cannot be used."""

    code = "bad_output"
    exit_code = 2
    status = 400


class PortInUseError(ProjectionError):
    code = "port_in_use"
    status = 409


class ComparisonError(ProjectionError):
    """Two spaces do not hold the same photos, so there is nothing to compare."""

    code = "not_comparable"
    exit_code = 2
    status = 400


# ---- the service


class ServiceError(FewshotError):
    """A request that the service refuses. `retry_after_s` says when to come again, where that helps."""

    code = "service"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, hint: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RequestError(ServiceError):
    code = "bad_request"
    exit_code = 2
    status = 422


class NoSuchPageError(ServiceError):
    code = "no_such_page"
    exit_code = 2
    status = 404
    hint = "/v1/openapi.json lists the routes."


class MethodError(ServiceError):
    code = "method_not_allowed"
    exit_code = 2
    status = 405
    hint = "/v1/openapi.json lists the routes and their methods."


class HostError(ServiceError):
    """The request names a host that this service does not answer for: what a page elsewhere makes a browser do."""

    code = "wrong_host"
    exit_code = 2
    status = 400


class UnauthorizedError(ServiceError):
    code = "unauthorized"
    exit_code = 2
    status = 401
    hint = "Send `Authorization: Bearer TOKEN`; `fewshot token create NAME` makes one."


class ForbiddenError(ServiceError):
    code = "forbidden"
    exit_code = 2
    status = 403


class BodyTooLargeError(ServiceError):
    code = "body_too_large"
    exit_code = 2
    status = 413


class TooManyFilesError(ServiceError):
    code = "too_many_files"
    exit_code = 2
    status = 413


class TooManyRequestsError(ServiceError):
    code = "too_many_requests"
    exit_code = 2
    status = 429
    hint = "Wait for as many seconds as Retry-After says, then go on."


class SlowClientError(ServiceError):
    code = "too_slow"
    exit_code = 2
    status = 408
    hint = "Send the photos again, over a steadier connection or fewer at a time."


class BusyError(ServiceError):
    code = "busy"
    status = 503
    hint = "Wait for as many seconds as Retry-After says, then ask again."


class IndexChangedError(ServiceError):
    """The index got another backbone while photos were being embedded with the one before."""

    code = "index_changed"
    status = 503
    hint = "Ask again."


class UnforeseenError(ServiceError):
    code = "unforeseen"
    hint = "The log of the service has the reason, under the request id that X-Request-Id gives."


class NoUsablePhotoError(ServiceError):
    code = "no_usable_photo"
    status = 422


class TokenError(ServiceError):
    """A token cannot be made, found or read."""

    code = "token"
    exit_code = 2
    status = 400


class AddressError(ServiceError):
    """The service cannot listen where it was told to."""

    code = "address"
    exit_code = 2
    status = 400


class TlsError(ServiceError):
    """The service cannot speak TLS with what it was given."""

    code = "tls"
    exit_code = 2
    status = 400
    hint = "Wanted two PEM files that belong together: the certificate with its chain, and its private key."
