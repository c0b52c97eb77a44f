"""`GET /v1/projection`: enrolled photos on a map of their embeddings, made once a change of the index."""

import asyncio
from collections import OrderedDict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from fewshot.errors import BusyError
from fewshot.extras import need
from fewshot.gallery import Gallery
from fewshot.service import shapes
from fewshot.service.access import READ
from fewshot.service.routes import AtWork, errors
from fewshot.service.threads import Threads

router = APIRouter(prefix="/v1", tags=["map"], dependencies=[READ])
MOST_POINTS = 5000
MOST_MAPS = 12  # three methods in two and three dimensions, of two generations
MOST_WAITING = 6
SEED = 0

Key = tuple[int, str, int]


class Maps:
    """The maps of an index, each made once a generation, in a thread of its own: t-SNE may take a minute.

    Args:
        gallery: whose photos.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._made: OrderedDict[Key, dict[str, Any]] = OrderedDict()
        self._under_way: dict[Key, asyncio.Future[dict[str, Any]]] = {}
        self._thread = Threads(1, "map")

    async def get(self, generation: int, method: str, n_dims: int) -> dict[str, Any]:
        """The map of a generation; requests for one that is under way wait for it together.

        Raises:
            BusyError: too many maps are under way.
        """
        key = (generation, method, n_dims)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        if key not in self._under_way:
            if len(self._under_way) >= MOST_WAITING:
                raise BusyError(f"{len(self._under_way)} maps are being made.", retry_after_s=10)
            job = asyncio.get_running_loop().run_in_executor(self._thread, self._make, method, n_dims)
            self._under_way[key] = job
            job.add_done_callback(lambda _: self._under_way.pop(key, None))
        found = await asyncio.shield(self._under_way[key])
        self._made[(found["generation"], method, n_dims)] = found
        while len(self._made) > MOST_MAPS:
            self._made.popitem(last=False)
        return found

    def close(self) -> None:
        """Stop. A map that is under way is for nobody any more, and nobody waits for it."""
        for job in list(self._under_way.values()):
            job.cancel()
        self._thread.close(0.0, drop=True)

    def _make(self, method: str, n_dims: int) -> dict[str, Any]:
        need("project", "the map")
        from fewshot.projection.coordinates import coordinates

        generation, photos, vectors = self._gallery.embeddings(MOST_POINTS)
        places = coordinates(vectors, method, n_dims, SEED)
        points = [
            {
                "support_id": photo.support_id,
                "label": photo.label,
                "file": photo.file,
                **dict(zip("xyz", [round(value, 5) for value in place], strict=False)),
            }
            for photo, place in zip(photos, places.tolist(), strict=True)
        ]
        if n_dims == 2:
            points = [{**point, "z": None} for point in points]
        n_supports = self._gallery.size()[1]
        return {
            "method": method,
            "dims": n_dims,
            "generation": generation,
            "supports": n_supports,
            "points": points,
        }


@router.get(
    "/projection", response_model=shapes.Projection, responses=errors(409, 501), summary="The map of embeddings"
)
async def projection(
    request: Request,
    work: AtWork,
    method: Annotated[Literal["pca", "tsne", "umap"], Query(description="How the map is drawn.")] = "pca",
    dims: Annotated[int, Query(ge=2, le=3, description="Dimensions.")] = 2,
) -> Response:
    """Near points are photos that look alike to the backbone. Where more than 5,000 are enrolled, some of all."""
    about = await work.read(work.gallery.about)
    maps: Maps = request.app.state.maps
    found = await maps.get(about.generation, method, dims)
    return await work.read_json(lambda: found)
