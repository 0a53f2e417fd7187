"""Images of pages: names of all kinds, regions in stated coordinates, sizes."""

import http.client
import io
import json
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image, ImageChops

from tests.serving.conftest import PAGES, SIZE, picture, running
from tests.serving.test_search_service import fault
from vrag_jax.perception.frames import Frame
from vrag_jax.perception.image_ops import PixelLimits, crop_and_zoom, show_page
from vrag_jax.serving.service_config import ServiceLimits


def get(client, page_id, **params):
    return client.get(f'/pages/{quote(page_id)}', params=params)


def image_of(response):
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content))


def same(a, b):
    return a.size == b.size and a.mode == b.mode and not ImageChops.difference(a, b).getbbox()


@pytest.mark.parametrize('number', range(5))
def test_a_page_is_found_by_its_id_whatever_is_in_it(client, number):
    response = get(client, PAGES[number][0])
    assert same(image_of(response), picture(number))
    assert response.headers['Content-Type'] == 'image/png'
    assert response.headers['X-Page-Size'] == response.headers['X-Image-Size'] == '300x200'


@pytest.mark.parametrize('page_id', ['annual/2020/3', '云/网络 1'])
def test_slashes_may_be_escaped(client, page_id):
    response = client.get('/pages/' + quote(page_id, safe=''))
    assert same(image_of(response), picture([page[0] for page in PAGES].index(page_id)))


@pytest.mark.parametrize('page_id', [
    'none', 'report', 'img/0.png', '../pages.jsonl', '..%2f..%2fetc%2fpasswd', '%00', 'annual'])
def test_what_is_no_page_is_not_found(client, page_id):
    # By a client that sends paths as they are.
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
    connection.request('GET', f'/pages/{page_id}')
    response = connection.getresponse()
    assert (response.status, json.load(response)['field']) == (404, 'page_id')
    connection.close()


def test_a_region_is_in_pixels_of_the_page(client):
    response = get(client, 'report_1', region='10,20,110.5,70')
    assert same(image_of(response), picture(0).crop((10, 20, 111, 70)))
    assert response.headers['X-Page-Region'] == '10,20,111,70'
    assert response.headers['X-Image-Size'] == '101x50'


def test_or_in_pixels_of_the_image_that_it_was_chosen_on(client):
    # At 600 x 100 the page is twice as wide and half as high.
    response = get(client, 'report_1', region='20,10,220,35', frame='600x100')
    assert same(image_of(response), picture(0).crop((10, 20, 110, 70)))


def test_a_region_is_shown_as_the_policy_sees_it(client):
    limits = PixelLimits(56 * 56, 112 * 112)
    page = Frame('report_1', SIZE, (0, 0, *SIZE), (168, 112))
    expected, frame = crop_and_zoom(picture(0), page, (10, 20, 60, 70), limits)
    response = get(client, 'report_1', region='10,20,60,70', frame='168x112',
                   min_pixels=56 * 56, max_pixels=112 * 112)
    assert same(image_of(response), expected)
    assert response.headers['X-Page-Region'] == ','.join(f'{x:g}' for x in frame.region)


def test_so_is_a_whole_page(client):
    limits = PixelLimits(56 * 56, 112 * 112)
    response = get(client, 'report_2', min_pixels=56 * 56, max_pixels=112 * 112)
    assert same(image_of(response), show_page(picture(1), 'report_2', limits)[0])


def test_one_bound_is_enough(client):
    smaller = image_of(get(client, 'report_1', max_pixels=20_000))
    larger = image_of(get(client, 'report_1', min_pixels=100_000))
    assert smaller.width * smaller.height <= 20_000
    assert larger.width * larger.height >= 100_000


def test_a_region_beyond_the_edge_is_clamped(client):
    assert same(image_of(get(client, 'report_1', region='250,150,310,210')),
                picture(0).crop((250, 150, 300, 200)))


def test_jpeg_is_nearly_the_page(client):
    response = get(client, 'report_1', format='jpeg')
    assert response.headers['Content-Type'] == 'image/jpeg'
    image = image_of(response)
    assert image.format == 'JPEG' and image.size == SIZE
    assert np.abs(np.subtract(image.getpixel((120, 90)), (120, 90, 0))).max() < 12


@pytest.mark.parametrize('params,field', [
    ({'region': '1,2,3'}, 'region'), ({'region': 'a,b,c,d'}, 'region'),
    ({'region': '0,0,0,10'}, 'region'), ({'region': '-1,0,10,10'}, 'region'),
    ({'region': 'nan,0,10,10'}, 'region'), ({'region': '0,0,inf,10'}, 'region'),
    ({'region': '300,0,400,10'}, 'region'), ({'region': '0,0,451,10'}, 'region'),
    ({'region': '0,0,9,9', 'frame': '600'}, 'frame'),
    ({'region': '0,0,9,9', 'frame': '0x100'}, 'frame'), ({'frame': '600x100'}, 'frame'),
    ({'min_pixels': 0}, 'min_pixels'), ({'max_pixels': 'many'}, 'max_pixels'),
    ({'max_pixels': 1 << 30}, 'max_pixels'), ({'min_pixels': 9000, 'max_pixels': 8000},
                                              'max_pixels'),
    ({'max_pixels': 100}, 'max_pixels'), ({'format': 'gif'}, 'format'),
])
def test_what_is_wrong_with_an_image_is_named(client, params, field):
    assert fault(get(client, 'report_1', **params)) == (422, field)


def test_no_image_is_larger_than_allowed(live):
    with running(live, limits=ServiceLimits(image_pixels=50_000)) as (url, _), \
            httpx.Client(base_url=url) as client:
        assert fault(get(client, 'report_1')) == (422, 'max_pixels')
        assert fault(get(client, 'report_1', max_pixels=50_001)) == (422, 'max_pixels')
        assert image_of(get(client, 'report_1', region='0,0,250,200')).size == (250, 200)
        shown = image_of(get(client, 'report_1', max_pixels=50_000))
        assert 30_000 < shown.width * shown.height <= 50_000


def test_an_image_that_the_client_has_is_not_sent_again(client):
    first = get(client, 'report_1', region='0,0,9,9')
    headers = {'If-None-Match': first.headers['ETag']}
    again = client.get('/pages/report_1', params={'region': '0,0,9,9'}, headers=headers)
    assert again.status_code == 304 and not again.content
    other = client.get('/pages/report_1', headers={'If-None-Match': '"other"'})
    assert other.status_code == 200
