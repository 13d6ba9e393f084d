// Playwright, unmodified, over CDP. See README.md.

const { chromium } = require('playwright-core');
const { main, same, step } = require('./steps.cjs');

const connect = endpoint => step('connect', () => chromium.connectOverCDP(endpoint));

async function work(endpoint, pages) {
  const browser = await connect(endpoint);
  const context = await step('one default context', async () => {
    same(browser.contexts().length, 1);
    return browser.contexts()[0];
  });
  const there = context.pages();
  const page = await step('newPage', () => context.newPage());
  await step('a new session is one blank page, or none', async () => {
    same(there.filter(page => page.url() !== 'about:blank').length, 0);
    for (const page of there) await page.close();
  });
  await step('goto', async () => {
    const response = await page.goto(`${pages}/`);
    same([response.status(), await page.title()], [200, 'index']);
  });
  await step('click', async () => {
    await page.click('#count');
    await page.click('#count');
    same(await page.textContent('#count'), '2');
  });
  await step('evaluate', async () => same(await page.evaluate(n => n * 7, 6), 42));
  await step('popup', async () => {
    const [popup] = await Promise.all([page.waitForEvent('popup'), page.click('#popup')]);
    await popup.waitForLoadState();
    same(await popup.title(), 'popup');
    await popup.close();
  });
  await step('popups are seen before they run', async () => {
    const title = async () => {
      const [popup] = await Promise.all([page.waitForEvent('popup'), page.click('#popup')]);
      await popup.waitForLoadState();
      const title = await popup.title();
      await popup.close();
      return title;
    };
    const answer = route => route.fulfill({ contentType: 'text/html', body: '<title>routed</title>' });
    await context.route('**/popup', answer);
    for (let time = 0; time < 10; time++) same(await title(), 'routed');
    await context.unroute('**/popup');
    same(await title(), 'popup');
  });
  await step('route', async () => {
    await page.route('**/api', route => route.fulfill({ body: 'from the client' }));
    const get = () => page.evaluate(() => fetch('/api').then(response => response.text()));
    same(await get(), 'from the client');
    await page.unroute('**/api');
    same(await get(), 'from the server');
  });
  await step('newContext', async () => {
    const before = browser.contexts().length;
    const other = await browser.newContext({ userAgent: 'another', viewport: { width: 400, height: 300 } });
    const there = await other.newPage();
    await there.goto(`${pages}/cookie`);
    same(await there.evaluate(() => [navigator.userAgent, innerWidth]), ['another', 400]);
    same((await other.cookies()).map(cookie => cookie.name), ['visited']);
    same((await context.cookies()).map(cookie => cookie.name), []);
    same((await other.storageState()).cookies.length, 1);
    await other.close();
    same(browser.contexts().length, before);
  });
  await step('cookies', async () => {
    await context.addCookies([{ name: 'mine', value: '1', url: pages }]);
    same((await context.cookies()).map(cookie => cookie.name), ['mine']);
    same(await page.evaluate(() => document.cookie), 'mine=1');
  });
  await step('screenshot', async () => {
    const picture = await page.screenshot({ fullPage: true });
    same(picture.subarray(1, 4).toString(), 'PNG');
  });
  await step('newCDPSession', async () => {
    const session = await context.newCDPSession(page);
    const { result } = await session.send('Runtime.evaluate', { expression: 'document.title' });
    same(result.value, 'index');
    await session.detach();
  });
  await step('newBrowserCDPSession', async () => {
    const session = await browser.newBrowserCDPSession();
    const { product } = await session.send('Browser.getVersion');
    same(product.includes('Chrome/'), true);
    const { targetInfos } = await session.send('Target.getTargets');
    same(targetInfos.map(info => info.url), [`${pages}/`]);
    await session.detach();
  });
  await step('frames', async () => {
    await page.goto(`${pages}/frame`);
    same(await page.frames()[1].title(), 'popup');
  });
  await step('exposeBinding and addInitScript', async () => {
    await page.exposeBinding('twice', (_, n) => n * 2);
    await page.addInitScript(() => (window.early = true));
    await page.goto(`${pages}/`);
    same(await page.evaluate(async () => [await window.twice(21), window.early]), [42, true]);
  });
  await step('upload', async () => {
    const file = { name: 'mine.txt', mimeType: 'text/plain', buffer: Buffer.from('mine') };
    await page.setInputFiles('#file', file);
    same(await page.evaluate(() => document.querySelector('#file').files[0].text()), 'mine');
  });
  await step('download', async () => {
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#file-link')]);
    same(download.suggestedFilename(), 'data.bin');
  });
  await step('pdf', async () => same((await page.pdf()).subarray(0, 4).toString(), '%PDF'));
  await step('leave a page', async () => {
    await page.goto(`${pages}/#kept`);
    await page.fill('#text', 'left here');
    await page.evaluate(() => {
      localStorage.kept = 'local';
      sessionStorage.kept = 'session';
    });
  });
  await step('disconnect', () => browser.close());
  await rejoin(endpoint, pages);
}

async function rejoin(endpoint, pages) {
  const browser = await connect(endpoint);
  await step('the same page', async () => {
    const open = browser.contexts()[0].pages().filter(page => page.url() !== 'about:blank');
    same(open.map(page => page.url()), [`${pages}/#kept`]);
    const page = open[0];
    same(await page.inputValue('#text'), 'left here');
    same(await page.evaluate(() => [localStorage.kept, sessionStorage.kept]), ['local', 'session']);
    same((await browser.contexts()[0].cookies()).map(cookie => cookie.name), ['mine']);
  });
  await step('disconnect', () => browser.close());
}

async function killed(endpoint) {
  const browser = await connect(endpoint);
  const page = await step('newPage', () => browser.contexts()[0].newPage());
  const gone = new Promise(done => browser.once('disconnected', done));
  const never = page.evaluate(() => new Promise(() => {})).then(
    () => 'answered',
    () => 'failed',
  );
  console.log('ready');
  await step('what waits fails', async () => same(await never, 'failed'));
  await step('disconnected', () => gone);
  await step('later calls fail', async () => {
    same(await page.title().then(() => 'answered', () => 'failed'), 'failed');
  });
}

async function close(endpoint) {
  const browser = await connect(endpoint);
  const session = await step('newBrowserCDPSession', () => browser.newBrowserCDPSession());
  const gone = new Promise(done => browser.once('disconnected', done));
  await step('Browser.close', () => session.send('Browser.close').catch(() => {}));
  await step('disconnected', () => gone);
}

main({ work, rejoin, killed, close });
